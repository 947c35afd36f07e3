//! What a GGUF file is to say of the tokenizer in a model folder: the way back from `gguf.rs`.
//! Owns what GGUF can't say, which is refused instead of being lost.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use serde_json::Value;

use super::gguf::{MAX_MERGED_BYTES, Pre, token_type};
use super::{GgufVocab, error, huggingface};
use crate::Result;

/// The vocabulary of the tokenizer in `dir` for an embedding of `rows` rows; ids that no token has
/// get a name of their own.
pub(super) fn vocab(dir: &Path, rows: usize) -> Result<GgufVocab> {
    let path = dir.join(huggingface::TOKENIZER_FILE);
    // Reads and checks everything that the pieces below are taken from.
    let parts = huggingface::parts(dir)?;
    let file = huggingface::read_json(&path)?.unwrap_or_default();
    if parts.vocab_size > rows {
        let message = format!("{} token ids, but the embedding has {rows} rows", parts.vocab_size);
        return Err(error(&path, message));
    }
    let byte_level = parts.kind.starts_with("byte-level");
    if !byte_level && !parts.byte_fallback {
        return Err(error(&path, "GGUF has no name for a BPE without bytes"));
    }

    let model = file.get("model").unwrap_or(&Value::Null);
    let mut tokens: Vec<(String, i32)> =
        (0..rows).map(|id| (format!("[PAD{id}]"), token_type::UNUSED)).collect();
    let mut name = |id: u32, text: &str, kind| {
        if let Some(token) = usize::try_from(id).ok().and_then(|id| tokens.get_mut(id)) {
            *token = (text.to_string(), kind);
        }
    };
    let listed = model.get("vocab").and_then(Value::as_object);
    let listed = listed.into_iter().flatten().filter_map(|(text, id)| Some((text, huggingface::id(id)?)));
    for (text, id) in listed {
        let byte = parts.byte_fallback && is_byte(text);
        name(id, text, if byte { token_type::BYTE } else { token_type::NORMAL });
    }
    for (token, id) in &parts.added {
        if token.lstrip || token.rstrip || token.single_word {
            log::warn!("GGUF can't say that token '{}' takes the spaces beside it", token.content);
        }
        name(*id, &token.content, if token.special { token_type::CONTROL } else { token_type::USER_DEFINED });
    }
    let place = |text: &str| tokens.iter().position(|(token, _)| token == text);
    let unk = model.get("unk_token").and_then(Value::as_str).and_then(place);
    if let Some((_, kind)) = unk.and_then(|id| tokens.get_mut(id)) {
        *kind = token_type::UNKNOWN;
    }

    let merges = merges(model);
    let normalizer = file.get("normalizer").unwrap_or(&Value::Null);
    let pre_tokenizer = file.get("pre_tokenizer").unwrap_or(&Value::Null);
    let mut vocab = GgufVocab {
        bos: parts.bos,
        eos: parts.ends.first().copied(),
        eot: parts.ends.iter().copied().find(|id| Some(id) != parts.ends.first()),
        unk: unk.and_then(|id| u32::try_from(id).ok()),
        add_bos: Some(parts.adds_bos),
        add_eos: Some(false),
        chat_template: parts.template,
        ..GgufVocab::default()
    };
    if byte_level {
        let whole_first = model.get("ignore_merges").and_then(Value::as_bool).unwrap_or(false);
        vocab.model = "gpt2".into();
        vocab.pre = Some(Pre::name_of(&path, normalizer, pre_tokenizer, whole_first)?.into());
        vocab.merges = merges.iter().map(|(left, right)| format!("{left} {right}")).collect();
    } else {
        vocab.model = "llama".into();
        vocab.pre = Some("default".into());
        vocab.add_space_prefix = Some(adds_space(normalizer, pre_tokenizer));
        vocab.scores = scores(&path, &tokens, &merges)?;
    }
    (vocab.tokens, vocab.token_types) = tokens.into_iter().unzip();
    Ok(vocab)
}

/// Whether `text` stands for a byte: `<0x0A>`.
fn is_byte(text: &str) -> bool {
    let digits = text.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|d| d.len() == 2 && d.chars().all(|c| c.is_ascii_hexdigit()))
}

/// The merges, best first. Files write them as a pair or as one text.
fn merges(model: &Value) -> Vec<(&str, &str)> {
    let list = model.get("merges").and_then(Value::as_array);
    list.into_iter()
        .flatten()
        .filter_map(|merge| match merge.as_array().map(Vec::as_slice) {
            Some([left, right]) => Some((left.as_str()?, right.as_str()?)),
            _ => merge.as_str()?.split_once(' '),
        })
        .collect()
}

/// Whether a space is put before the text.
fn adds_space(normalizer: &Value, pre_tokenizer: &Value) -> bool {
    let prepends = huggingface::contains_kind(normalizer, "Prepend");
    let metaspace = huggingface::nested(pre_tokenizer)
        .into_iter()
        .filter(|p| huggingface::kind_of(p) == Some("Metaspace"))
        .any(|p| p.get("prepend_scheme").and_then(Value::as_str) != Some("never"));
    prepends || metaspace
}

/// Scores that put merges into the order that they have: SentencePiece's pieces have one each, so
/// all merges that make a token must stand together, and every two tokens that make one must merge.
fn scores(path: &Path, tokens: &[(String, i32)], merges: &[(&str, &str)]) -> Result<Vec<f32>> {
    let mut rank: HashMap<String, usize> = HashMap::new();
    let mut last = String::new();
    for (at, (left, right)) in merges.iter().enumerate() {
        let whole = format!("{left}{right}");
        if whole != last && rank.insert(whole.clone(), at).is_some() {
            return Err(error(
                path,
                format!("merges of '{whole}' stand apart, for which GGUF has no scores"),
            ));
        }
        last = whole;
    }
    let known: HashSet<&(&str, &str)> = merges.iter().collect();
    let is_text = |kind| kind == token_type::NORMAL || kind == token_type::USER_DEFINED;
    let pieces: HashSet<&str> = tokens.iter().filter(|t| is_text(t.1)).map(|t| t.0.as_str()).collect();
    for whole in &pieces {
        if whole.len() > MAX_MERGED_BYTES {
            let found = whole.len();
            return Err(error(
                path,
                format!("expected tokens of at most {MAX_MERGED_BYTES} bytes, found one of {found}"),
            ));
        }
        let halves = whole.char_indices().skip(1).map(|(at, _)| whole.split_at(at));
        let missing = halves
            .filter(|(left, right)| pieces.contains(left) && pieces.contains(right))
            .find(|halves| !known.contains(halves));
        if let Some((left, right)) = missing {
            let message = format!("'{left}' and '{right}' do not merge, which scores of GGUF can't say");
            return Err(error(path, message));
        }
    }
    // Tokens that nothing merges to come last; their scores are not looked at.
    let score = |(text, kind): &(String, i32)| match rank.get(text.as_str()) {
        Some(rank) => -(*rank as f32),
        None if is_text(*kind) => -(merges.len() as f32),
        None => 0.0,
    };
    Ok(tokens.iter().map(score).collect())
}

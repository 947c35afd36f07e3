//! Builds a tokenizer from what a GGUF file says of it. Owns the pre-tokenizers that such files
//! name and the making of merges from scores. Reading the file is not its business.

use std::collections::HashMap;
use std::path::Path;

use serde_json::Value;
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::{NFC, NormalizerWrapper, Prepend, Replace, Sequence as Normalizers};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior;
use tokenizers::{AddedToken, DecoderWrapper, PreTokenizerWrapper, decoders};

use super::{GgufVocab, MAX_TOKENS, Parts, error};
use crate::Result;

/// `tokenizer.ggml.token_type`, as GGUF defines it.
pub(super) mod token_type {
    pub const NORMAL: i32 = 1;
    pub const UNKNOWN: i32 = 2;
    pub const CONTROL: i32 = 3;
    pub const USER_DEFINED: i32 = 4;
    pub const UNUSED: i32 = 5;
    pub const BYTE: i32 = 6;
}

/// Bytes of the longest token that merges are made for. Looking at all splits of a token takes
/// time that grows with the square of its length.
pub(super) const MAX_MERGED_BYTES: usize = 512;
/// Merges that a file may list.
const MAX_MERGES: usize = 1 << 24;
/// Merges that are made for each token on average, and for small vocabularies in all; real ones give
/// less than ten.
const MERGES_PER_TOKEN: usize = 32;
const FEW_MERGES: usize = 4096;

/// What SentencePiece writes in place of a space.
const SPACE: &str = "\u{2581}";

/// Words of the Llama 3 family: up to three digits together.
const LLAMA3_WORDS: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
/// Words of the Qwen 2 family: as Llama 3, but each digit alone.
const QWEN2_WORDS: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

/// Words of Mistral's Tekken: a change from small to capital letters begins one, and so does each digit.
const TEKKEN_WORDS: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
/// Words of GPT-4o, which Phi 4 mini has, too: as Tekken with short forms, and up to three digits.
const GPT4O_WORDS: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

/// A way to cut text into words before BPE.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Pre {
    Gpt2,
    SmolLm,
    Llama3,
    /// The words of Llama 3, whose merges count for whole words, too.
    Dbrx,
    Qwen2,
    /// The words of Qwen 2, of text that is left as it is.
    StableLm2,
    Tekken,
    Gpt4o,
}

impl Pre {
    /// The names that files use.
    const NAMES: [(&'static str, Self); 22] = [
        ("default", Self::Gpt2),
        ("gpt-2", Self::Gpt2),
        ("smollm", Self::SmolLm),
        ("llama-bpe", Self::Llama3),
        ("llama3", Self::Llama3),
        ("llama-v3", Self::Llama3),
        ("qwen2", Self::Qwen2),
        ("deepseek-r1-qwen", Self::Qwen2),
        ("stablelm2", Self::StableLm2),
        ("tekken", Self::Tekken),
        ("gpt-4o", Self::Gpt4o),
        ("llama4", Self::Gpt4o),
        ("smaug-bpe", Self::Dbrx),
        ("dbrx", Self::Dbrx),
        ("starcoder", Self::SmolLm),
        ("refact", Self::SmolLm),
        ("command-r", Self::SmolLm),
        ("codeshell", Self::SmolLm),
        ("exaone", Self::SmolLm),
        ("phi-2", Self::Gpt2),
        ("mpt", Self::Gpt2),
        ("olmo", Self::Gpt2),
    ];

    fn named(path: &Path, name: &str) -> Result<Self> {
        Self::NAMES.iter().find(|(known, _)| *known == name).map(|(_, pre)| *pre).ok_or_else(|| {
            let known = Self::NAMES.map(|(known, _)| known).join(", ");
            error(path, format!("pre-tokenizer '{name}' is not known; known: {known}"))
        })
    }

    /// The name of the way that a `tokenizer.json` cuts.
    pub(super) fn name_of(
        path: &Path,
        normalizer: &Value,
        pre_tokenizer: &Value,
        ignores_merges: bool,
    ) -> Result<&'static str> {
        // Where a token begins in the text is of no interest here.
        fn without_offsets(mut value: Value) -> Value {
            if let Some(fields) = value.as_object_mut() {
                fields.remove("trim_offsets");
            }
            if let Some(list) = value.get_mut("pretokenizers").and_then(Value::as_array_mut) {
                list.iter_mut().for_each(|entry| *entry = without_offsets(entry.take()));
            }
            value
        }
        let json = |pre: &PreTokenizerWrapper| serde_json::to_value(pre).map(without_offsets).ok();
        // Read and written once, so that defaults are there.
        let given = serde_json::from_value(pre_tokenizer.clone()).ok().and_then(|pre| json(&pre));
        for (name, pre) in Self::NAMES.into_iter().skip(1) {
            let same_words = given.is_some() && json(&pre.build(path)?) == given;
            let same_text = match pre {
                Self::Qwen2 => normalizer.get("type").and_then(Value::as_str) == Some("NFC"),
                _ => normalizer.is_null(),
            };
            if same_words && same_text && ignores_merges == pre.ignores_merges() {
                return Ok(name);
            }
        }
        let known = Self::NAMES.map(|(known, _)| known).join(", ");
        let message =
            format!("GGUF's name for this pre-tokenizer is not known; known: {known}: {pre_tokenizer}");
        Err(error(path, message))
    }

    /// Whether a word that is a token is taken as one, whatever its merges say.
    fn ignores_merges(self) -> bool {
        matches!(self, Self::Llama3 | Self::Tekken)
    }

    fn build(self, path: &Path) -> Result<PreTokenizerWrapper> {
        let split = |words: &str| -> Result<PreTokenizerWrapper> {
            let pattern = SplitPattern::Regex(words.into());
            let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false);
            Ok(split.map_err(|e| error(path, e))?.into())
        };
        let gpt2 = ByteLevel::new(false, true, true);
        let bytes = ByteLevel::new(false, true, false);
        Ok(match self {
            Self::Gpt2 => gpt2.into(),
            Self::SmolLm => PreTokenizers::new(vec![Digits::new(true).into(), gpt2.into()]).into(),
            Self::Llama3 | Self::Dbrx => PreTokenizers::new(vec![split(LLAMA3_WORDS)?, bytes.into()]).into(),
            Self::Qwen2 | Self::StableLm2 => {
                PreTokenizers::new(vec![split(QWEN2_WORDS)?, bytes.into()]).into()
            }
            Self::Tekken => PreTokenizers::new(vec![split(TEKKEN_WORDS)?, bytes.into()]).into(),
            Self::Gpt4o => PreTokenizers::new(vec![split(GPT4O_WORDS)?, bytes.into()]).into(),
        })
    }
}

pub(super) fn parts(path: &Path, vocab: GgufVocab) -> Result<Parts> {
    check(path, &vocab)?;
    match vocab.model.as_str() {
        "gpt2" => byte_level(path, vocab),
        "llama" => sentence_piece(path, vocab),
        other => Err(error(path, format!("model '{other}' is not supported; supported: gpt2, llama"))),
    }
}

/// Checks what the building relies on.
fn check(path: &Path, vocab: &GgufVocab) -> Result<()> {
    let count = vocab.tokens.len();
    if count == 0 || count > MAX_TOKENS {
        return Err(error(path, format!("{count} tokens; expected 1 to {MAX_TOKENS}")));
    }
    for (what, len, needed) in [
        ("scores", vocab.scores.len(), vocab.model == "llama"),
        ("token types", vocab.token_types.len(), false),
    ] {
        if len != count && (len != 0 || needed) {
            return Err(error(path, format!("{len} {what} for {count} tokens")));
        }
    }
    if vocab.merges.len() > MAX_MERGES {
        return Err(error(path, format!("{} merges; at most {MAX_MERGES}", vocab.merges.len())));
    }
    for (name, id) in [("bos", vocab.bos), ("eos", vocab.eos), ("eot", vocab.eot), ("unk", vocab.unk)] {
        if let Some(id) = id
            && token(vocab, id).is_none()
        {
            return Err(error(path, format!("{name} token id {id}, but there are {count} tokens")));
        }
    }
    let mut seen = HashMap::with_capacity(count);
    for (id, text) in vocab.tokens.iter().enumerate() {
        if text.is_empty() {
            return Err(error(path, format!("token {id} is empty")));
        }
        if let Some(other) = seen.insert(text.as_str(), id) {
            return Err(error(path, format!("tokens {other} and {id} are both '{}'", text.escape_debug())));
        }
    }
    Ok(())
}

fn token(vocab: &GgufVocab, id: u32) -> Option<&String> {
    vocab.tokens.get(usize::try_from(id).ok()?)
}

/// Ids with their tokens and types.
fn entries(vocab: &GgufVocab) -> impl Iterator<Item = (u32, &str, i32)> {
    (0u32..).zip(&vocab.tokens).enumerate().map(|(at, (id, text))| {
        let named = [vocab.bos, vocab.eos, vocab.eot, vocab.unk].contains(&Some(id));
        // Old files give no types; the tokens with a role are still no text.
        let untyped = if named { token_type::CONTROL } else { token_type::NORMAL };
        (id, text.as_str(), vocab.token_types.get(at).copied().unwrap_or(untyped))
    })
}

fn byte_level(path: &Path, vocab: GgufVocab) -> Result<Parts> {
    let name = vocab.pre.as_deref().unwrap_or("default");
    let pre = Pre::named(path, name)?;
    let mut merges = Vec::with_capacity(vocab.merges.len());
    for (at, merge) in vocab.merges.iter().enumerate() {
        // The first character may be a space of the left token itself.
        let border = merge.char_indices().skip(1).find(|(_, c)| *c == ' ').map(|(at, _)| at);
        let halves = border.and_then(|b| Some((merge.get(..b)?, merge.get(b + 1..)?)));
        match halves {
            Some((left, right)) if !right.is_empty() => merges.push((left.to_string(), right.to_string())),
            _ => {
                let merge = merge.escape_debug();
                return Err(error(path, format!("merge {at} '{merge}' is not two tokens")));
            }
        }
    }
    let bpe = BPE::builder()
        .vocab_and_merges(ids(&vocab), merges)
        .ignore_merges(pre.ignores_merges())
        .build()
        .map_err(|e| error(path, e))?;
    let mut parts = common(path, &vocab, bpe)?;
    parts.normalizer = (pre == Pre::Qwen2).then(|| NFC.into());
    parts.pre_tokenizer = Some(pre.build(path)?);
    parts.decoder = Some(ByteLevel::new(false, true, true).into());
    parts.kind = format!("byte-level BPE ({name})");
    parts.adds_bos = vocab.add_bos.unwrap_or(pre == Pre::Llama3);
    Ok(parts)
}

fn sentence_piece(path: &Path, vocab: GgufVocab) -> Result<Parts> {
    let unk = vocab
        .unk
        .and_then(|id| token(&vocab, id).cloned())
        .or_else(|| entries(&vocab).find(|e| e.2 == token_type::UNKNOWN).map(|e| e.1.to_string()));
    let mut builder = BPE::builder()
        .vocab_and_merges(ids(&vocab), merges_by_score(path, &vocab)?)
        .fuse_unk(true)
        .byte_fallback(true);
    if let Some(unk) = unk {
        builder = builder.unk_token(unk);
    }
    let bpe = builder.build().map_err(|e| error(path, e))?;
    let spaces = Replace::new(" ", SPACE).map_err(|e| error(path, e))?;
    let back = Replace::new(SPACE, " ").map_err(|e| error(path, e))?;
    let mut normalizers: Vec<NormalizerWrapper> = vec![spaces.into()];
    let mut decoders: Vec<DecoderWrapper> = vec![
        back.into(),
        decoders::byte_fallback::ByteFallback::default().into(),
        decoders::fuse::Fuse::default().into(),
    ];
    if vocab.add_space_prefix.unwrap_or(true) {
        normalizers.insert(0, Prepend::new(SPACE.into()).into());
        decoders.push(decoders::strip::Strip::new(' ', 1, 0).into());
    }
    let mut parts = common(path, &vocab, bpe)?;
    parts.normalizer = Some(Normalizers::new(normalizers).into());
    parts.decoder = Some(decoders::sequence::Sequence::new(decoders).into());
    parts.byte_fallback = true;
    parts.kind = "SentencePiece BPE with byte fallback".into();
    parts.adds_bos = vocab.add_bos.unwrap_or(true);
    Ok(parts)
}

fn ids<S: std::hash::BuildHasher + Default>(vocab: &GgufVocab) -> HashMap<String, u32, S> {
    entries(vocab).map(|(id, text, _)| (text.to_string(), id)).collect()
}

/// What both kinds take over alike.
fn common(path: &Path, vocab: &GgufVocab, bpe: BPE) -> Result<Parts> {
    let mut added = Vec::new();
    for (id, text, kind) in entries(vocab) {
        match kind {
            token_type::NORMAL | token_type::UNUSED | token_type::BYTE => {}
            token_type::CONTROL | token_type::UNKNOWN => added.push((AddedToken::from(text, true), id)),
            token_type::USER_DEFINED => added.push((AddedToken::from(text, false).normalized(false), id)),
            other => return Err(error(path, format!("token {id} has type {other}; expected 1 to 6"))),
        }
    }
    let variables = [("bos_token", vocab.bos), ("eos_token", vocab.eos), ("unk_token", vocab.unk)]
        .into_iter()
        .filter_map(|(name, id)| Some((name.to_string(), token(vocab, id?)?.clone())))
        .collect();
    Ok(Parts {
        bpe,
        normalizer: None,
        pre_tokenizer: None,
        later_pre_tokenizer: None,
        decoder: None,
        byte_fallback: false,
        added,
        vocab_size: vocab.tokens.len(),
        kind: String::new(),
        bos: vocab.bos,
        adds_bos: false,
        ends: [vocab.eos, vocab.eot].into_iter().flatten().collect(),
        template: vocab.chat_template.clone(),
        variables,
    })
}

/// The merges of a SentencePiece vocabulary, best first: each split of each token into two other
/// tokens, ordered by the score of the whole, then by id of the whole, the left and the right.
/// Special tokens and bytes take no part, so that no text becomes one by merging.
fn merges_by_score(path: &Path, vocab: &GgufVocab) -> Result<Vec<(String, String)>> {
    let is_text = |kind| matches!(kind, token_type::NORMAL | token_type::USER_DEFINED | token_type::UNUSED);
    let pieces: HashMap<&str, u32> =
        entries(vocab).filter(|e| is_text(e.2)).map(|(id, text, _)| (text, id)).collect();
    let most = (vocab.tokens.len().saturating_mul(MERGES_PER_TOKEN) + FEW_MERGES).min(MAX_MERGES);
    let mut merges = Vec::new();
    for ((id, text, kind), score) in entries(vocab).zip(&vocab.scores) {
        if !is_text(kind) {
            continue;
        }
        if text.len() > MAX_MERGED_BYTES {
            return Err(error(
                path,
                format!("token {id} has {} bytes; at most {MAX_MERGED_BYTES}", text.len()),
            ));
        }
        for (at, _) in text.char_indices().skip(1) {
            let (Some(left), Some(right)) = (text.get(..at), text.get(at..)) else { continue };
            if let (Some(&left_id), Some(&right_id)) = (pieces.get(left), pieces.get(right)) {
                merges.push((*score, (id, left_id, right_id), left, right));
            }
        }
        if merges.len() > most {
            return Err(error(path, format!("the tokens give more than {most} merges")));
        }
    }
    merges
        .sort_by(|(score, ids, ..), (other, other_ids, ..)| other.total_cmp(score).then(ids.cmp(other_ids)));
    Ok(merges.into_iter().map(|(_, _, left, right)| (left.to_string(), right.to_string())).collect())
}

//! Builds a tokenizer from a model folder in Hugging Face's layout. Owns which of its files say
//! what, and the check that `tokenizer.json` holds only parts that are known to work on any input.

use std::io::ErrorKind;
use std::path::Path;

use serde_json::Value;
use tokenizers::models::bpe::BPE;
use tokenizers::{AddedToken, DecoderWrapper, NormalizerWrapper, PreTokenizerWrapper};

use super::{MAX_TOKENS, Parts, error};
use crate::host::read_limited;
use crate::{Error, Result};

pub(super) const TOKENIZER_FILE: &str = "tokenizer.json";
/// Bytes of the largest file that is read; the largest real ones have a tenth of it.
const MAX_FILE_BYTES: u64 = 512 << 20;

/// The kinds of normalizer, pre-tokenizer and decoder that are let in. Others belong to model
/// families that are not supported, and some of them panic on unusual input.
const NORMALIZERS: [&str; 7] = ["Sequence", "NFC", "NFD", "NFKC", "NFKD", "Prepend", "Replace"];
const PRE_TOKENIZERS: [&str; 6] = ["Sequence", "Split", "ByteLevel", "Digits", "Metaspace", "Punctuation"];
const DECODERS: [&str; 7] =
    ["Sequence", "ByteLevel", "ByteFallback", "Fuse", "Strip", "Replace", "Metaspace"];

/// Bytes of all regular expressions together, and the sum of the numbers in their braces, such as the 3
/// of `{1,3}`. Known ones have less than a tenth; what they are compiled to is up to ten thousand times
/// as long, and as many times as braces say.
const MAX_REGEX_BYTES: usize = 4096;
const MAX_REGEX_REPEATS: usize = 64;
/// How many times as long replacing can make a text: known tokenizers put three bytes for one.
const MAX_GROWTH: usize = 64;

/// The variables that templates know, by their keys in the configuration.
const TOKEN_KEYS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"];

pub(super) fn parts(dir: &Path) -> Result<Parts> {
    let path = dir.join(TOKENIZER_FILE);
    let mut file =
        read_json(&path)?.ok_or_else(|| Error::io(&path, std::io::Error::from(ErrorKind::NotFound)))?;
    let config = Config::read(dir)?;
    check_version(&path, &file)?;

    let normalizer = take(&mut file, "normalizer");
    let pre_tokenizer = take(&mut file, "pre_tokenizer");
    let decoder = take(&mut file, "decoder");
    check_kinds(&path, &normalizer, "normalizer", &NORMALIZERS)?;
    check_kinds(&path, &pre_tokenizer, "pre-tokenizer", &PRE_TOKENIZERS)?;
    check_kinds(&path, &decoder, "decoder", &DECODERS)?;
    for (part, what) in
        [(&normalizer, "normalizer"), (&pre_tokenizer, "pre-tokenizer"), (&decoder, "decoder")]
    {
        check_size(&path, part, what)?;
    }
    let later = without_first_prefix(&pre_tokenizer);
    let byte_level = contains_kind(&pre_tokenizer, "ByteLevel") || contains_kind(&decoder, "ByteLevel");
    let byte_fallback = contains_kind(&decoder, "ByteFallback");

    let vocabulary = vocabulary(&path, &mut file)?;
    let added = added_tokens(&path, take(&mut file, "added_tokens"))?;
    let highest = added.iter().map(|(_, id)| *id).chain([vocabulary.highest]).max().unwrap_or(0);
    let lookup = |text: &str| {
        let added = added.iter().find(|(token, _)| token.content == text).map(|(_, id)| *id);
        added.or_else(|| tokenizers::Model::token_to_id(&vocabulary.bpe, text))
    };

    let leading = leading_special(&take(&mut file, "post_processor"));
    let bos = config.bos(&path, &lookup, leading.as_deref())?;
    let written = leading.as_deref().is_some_and(|text| bos.is_some() && lookup(text) == bos);
    if config.add_bos == Some(true) && bos.is_none() {
        return Err(error(&path, "add_bos_token is set, but no BOS token is named"));
    }
    if let Some(id) = bos.filter(|id| *id > highest) {
        return Err(error(&path, format!("BOS token id {id}, but the highest id is {highest}")));
    }
    let ends = config.ends(&path, &lookup)?;
    let kind = match (byte_level, byte_fallback) {
        (true, _) => "byte-level BPE",
        (false, true) => "SentencePiece BPE with byte fallback",
        (false, false) => "BPE",
    };
    Ok(Parts {
        normalizer: part::<NormalizerWrapper>(&path, "normalizer", normalizer)?,
        pre_tokenizer: part::<PreTokenizerWrapper>(&path, "pre-tokenizer", pre_tokenizer)?,
        later_pre_tokenizer: part::<PreTokenizerWrapper>(&path, "pre-tokenizer", later.unwrap_or_default())?,
        decoder: part::<DecoderWrapper>(&path, "decoder", decoder)?,
        bpe: vocabulary.bpe,
        byte_fallback,
        added,
        vocab_size: usize::try_from(highest).unwrap_or(usize::MAX).saturating_add(1),
        kind: kind.into(),
        bos,
        adds_bos: config.add_bos.unwrap_or(written),
        ends,
        template: config.template,
        variables: config.tokens,
    })
}

/// What the files beside `tokenizer.json` say.
struct Config {
    add_bos: Option<bool>,
    /// Names such as `bos_token`, with their texts.
    tokens: Vec<(String, String)>,
    bos_id: Option<u32>,
    end_ids: Vec<u32>,
    template: Option<String>,
}

impl Config {
    fn read(dir: &Path) -> Result<Self> {
        let read = |name: &str| read_json(&dir.join(name)).map(Option::unwrap_or_default);
        let tokenizer = read("tokenizer_config.json")?;
        let map = read("special_tokens_map.json")?;
        let generation = read("generation_config.json")?;
        let model = read("config.json")?;
        let text =
            |value: &Value| value.as_str().or_else(|| value.get("content")?.as_str()).map(String::from);
        let tokens = TOKEN_KEYS
            .iter()
            .filter_map(|key| {
                let found = [&tokenizer, &map].into_iter().find_map(|file| text(file.get(key)?))?;
                Some((key.to_string(), found))
            })
            .collect();
        Ok(Self {
            add_bos: tokenizer.get("add_bos_token").and_then(Value::as_bool),
            tokens,
            bos_id: [&generation, &model].into_iter().find_map(|f| id(f.get("bos_token_id")?)),
            end_ids: [&generation, &model]
                .into_iter()
                .flat_map(|f| match f.get("eos_token_id") {
                    Some(Value::Array(list)) => list.iter().filter_map(id).collect(),
                    Some(one) => id(one).into_iter().collect(),
                    None => Vec::new(),
                })
                .collect(),
            template: template(dir, &tokenizer)?,
        })
    }

    fn token(&self, key: &str) -> Option<&str> {
        self.tokens.iter().find(|(name, _)| name == key).map(|(_, text)| text.as_str())
    }

    fn id_of(&self, path: &Path, key: &str, lookup: &dyn Fn(&str) -> Option<u32>) -> Result<Option<u32>> {
        self.token(key)
            .map(|text| {
                lookup(text).ok_or_else(|| error(path, format!("{key} '{text}' is not in the vocabulary")))
            })
            .transpose()
    }

    /// The BOS token: named, else numbered, else the one that the post-processor puts in front.
    fn bos(
        &self,
        path: &Path,
        lookup: &dyn Fn(&str) -> Option<u32>,
        leading: Option<&str>,
    ) -> Result<Option<u32>> {
        Ok(self.id_of(path, "bos_token", lookup)?.or(self.bos_id).or_else(|| lookup(leading?)))
    }

    fn ends(&self, path: &Path, lookup: &dyn Fn(&str) -> Option<u32>) -> Result<Vec<u32>> {
        let named = self.id_of(path, "eos_token", lookup)?;
        Ok(named.into_iter().chain(self.end_ids.iter().copied()).collect())
    }
}

/// A token id. Some files write -1 or null for none.
pub(super) fn id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}

/// The chat template: a file of its own goes before the one in the configuration.
fn template(dir: &Path, tokenizer: &Value) -> Result<Option<String>> {
    if let Some(text) = read_text(&dir.join("chat_template.jinja"))? {
        return Ok(Some(text));
    }
    let file = read_json(&dir.join("chat_template.json"))?;
    let entry = file.as_ref().and_then(|f| f.get("chat_template")).or_else(|| tokenizer.get("chat_template"));
    Ok(match entry {
        Some(Value::Array(list)) => {
            // Several templates with names; those for tools and the like are not for plain chats.
            let named = |entry: &&Value| entry.get("name").and_then(Value::as_str) == Some("default");
            list.iter().find(named).and_then(|e| e.get("template")?.as_str()).map(String::from)
        }
        Some(one) => one.as_str().map(String::from),
        None => None,
    })
}

/// The file's text; `None` if there is no such file.
fn read_text(path: &Path) -> Result<Option<String>> {
    let bytes = match read_limited(path, MAX_FILE_BYTES) {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return Err(error(path, format!("expected at most {MAX_FILE_BYTES} bytes, found more"))),
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => return Ok(None),
        Err(other) => return Err(other),
    };
    String::from_utf8(bytes).map(Some).map_err(|_| error(path, "expected text in UTF-8, found other bytes"))
}

pub(super) fn read_json(path: &Path) -> Result<Option<Value>> {
    read_text(path)?
        .map(|text| serde_json::from_str(&text).map_err(|e| error(path, format!("not valid JSON: {e}"))))
        .transpose()
}

/// Moves an entry out of the file, since some are large.
fn take(file: &mut Value, key: &str) -> Value {
    file.get_mut(key).map(Value::take).unwrap_or_default()
}

fn part<T: serde::de::DeserializeOwned>(path: &Path, what: &str, value: Value) -> Result<Option<T>> {
    serde_json::from_value(value).map_err(|e| error(path, format!("{what}: {e}")))
}

fn check_version(path: &Path, file: &Value) -> Result<()> {
    match file.get("version").and_then(Value::as_str) {
        None | Some("1.0") => Ok(()),
        Some(other) => Err(error(path, format!("version '{other}'; expected 1.0"))),
    }
}

/// The entry and all entries in it.
pub(super) fn nested(value: &Value) -> Vec<&Value> {
    let mut all = vec![value];
    for key in ["normalizers", "pretokenizers", "decoders", "processors"] {
        if let Some(list) = value.get(key).and_then(Value::as_array) {
            all.extend(list.iter().flat_map(nested));
        }
    }
    all
}

pub(super) fn kind_of(value: &Value) -> Option<&str> {
    value.get("type")?.as_str()
}

pub(super) fn contains_kind(value: &Value, kind: &str) -> bool {
    nested(value).into_iter().any(|v| kind_of(v) == Some(kind))
}

fn check_kinds(path: &Path, value: &Value, what: &str, supported: &[&str]) -> Result<()> {
    for entry in nested(value).into_iter().filter(|entry| !entry.is_null()) {
        let kind = kind_of(entry).unwrap_or("without a type");
        if !supported.contains(&kind) {
            let supported = supported.join(", ");
            return Err(error(path, format!("{what} {kind} is not supported; supported: {supported}")));
        }
        // The engine goes back without end where it has to look around or at what it found before.
        let replaces = entry.pointer("/pattern/Regex").and_then(Value::as_str).filter(|_| kind == "Replace");
        if let Some(pattern) = replaces.filter(|pattern| backtracks(pattern)) {
            let message =
                format!("{what} Replace with '{pattern}' is not supported: it looks around or back");
            return Err(error(path, message));
        }
        // The crate's code for these two cuts where no character ends.
        let empty = entry.pointer("/pattern/String").and_then(Value::as_str) == Some("");
        let strips_end = what == "decoder" && kind == "Strip" && entry.get("stop") != Some(&Value::from(0));
        if empty || strips_end {
            return Err(error(path, format!("{what} {kind} with these options is not supported: {entry}")));
        }
    }
    Ok(())
}

/// Whether a regular expression has what takes going back and forth: all else is found in one pass.
fn backtracks(pattern: &str) -> bool {
    let groups = ["(?=", "(?!", "(?<", "(?>", "(?("];
    let possessive = ["*+", "++", "?+", "}+"];
    let escaped = |c: char| c.is_ascii_digit() || "kKgG".contains(c);
    let back = pattern.split('\\').skip(1).any(|rest| rest.starts_with(escaped));
    back || groups.iter().chain(&possessive).any(|part| pattern.contains(part))
}

/// Refuses patterns that would take far more memory than they have bytes, and replacements that make
/// texts grow one after another.
fn check_size(path: &Path, value: &Value, what: &str) -> Result<()> {
    let (mut bytes, mut repeats, mut growth) = (0usize, 0usize, 1usize);
    for entry in nested(value) {
        if let Some(pattern) = entry.pointer("/pattern/Regex").and_then(Value::as_str) {
            bytes += pattern.len();
            let braces = pattern.split('{').skip(1).filter_map(|rest| Some(rest.split_once('}')?.0));
            let numbers =
                braces.flat_map(|inner| inner.split(',')).filter_map(|n| n.trim().parse::<usize>().ok());
            repeats = numbers.fold(repeats, usize::saturating_add);
        }
        if kind_of(entry) == Some("Replace")
            && let Some(content) = entry.get("content").and_then(Value::as_str)
        {
            let added = match entry.pointer("/pattern/String").and_then(Value::as_str) {
                Some(pattern) => content.len().div_ceil(pattern.len().max(1)),
                // A pattern that matches nothing at all puts its content beside every character.
                None => content.len() + 1,
            };
            growth = growth.saturating_mul(added.max(1));
        }
    }
    let limits = [
        (bytes, MAX_REGEX_BYTES, "bytes of regular expressions"),
        (repeats, MAX_REGEX_REPEATS, "repetitions in regular expressions"),
        (growth, MAX_GROWTH, "times as long a text"),
    ];
    match limits.into_iter().find(|(found, most, _)| found > most) {
        Some((found, most, of)) => {
            Err(error(path, format!("{what}: expected at most {most} {of}, found {found}")))
        }
        None => Ok(()),
    }
}

/// A pre-tokenizer that puts a space before the first word only, for text that is not the first.
fn without_first_prefix(pre_tokenizer: &Value) -> Option<Value> {
    fn change(value: &mut Value) -> bool {
        let mut changed = false;
        if let Some(scheme) = value.get_mut("prepend_scheme")
            && scheme.as_str() == Some("first")
        {
            *scheme = Value::from("never");
            changed = true;
        }
        if let Some(list) = value.get_mut("pretokenizers").and_then(Value::as_array_mut) {
            for entry in list {
                changed |= change(entry);
            }
        }
        changed
    }
    let mut later = pre_tokenizer.clone();
    change(&mut later).then_some(later)
}

/// The token that the post-processor puts before a text.
fn leading_special(post_processor: &Value) -> Option<String> {
    nested(post_processor).into_iter().filter(|p| kind_of(p) == Some("TemplateProcessing")).find_map(|p| {
        let first = p.get("single")?.as_array()?.first()?;
        Some(first.pointer("/SpecialToken/id")?.as_str()?.to_string())
    })
}

struct Vocabulary {
    bpe: BPE,
    highest: u32,
}

fn vocabulary(path: &Path, file: &mut Value) -> Result<Vocabulary> {
    let mut model = take(file, "model");
    let kind = kind_of(&model).unwrap_or("BPE").to_string();
    let Some(fields) = model.as_object_mut().filter(|_| kind == "BPE") else {
        return Err(error(path, format!("model {kind} is not supported; supported: BPE")));
    };
    fields.remove("type");
    // Dropout makes encoding random; it is for training.
    fields.remove("dropout");
    for key in ["continuing_subword_prefix", "end_of_word_suffix"] {
        if fields.remove(key).is_some_and(|v| v.as_str().is_some_and(|s| !s.is_empty())) {
            return Err(error(path, format!("model with {key} is not supported")));
        }
    }
    let Some(vocab) = fields.get("vocab").and_then(Value::as_object) else {
        return Err(error(path, "the model has no vocabulary"));
    };
    if vocab.is_empty() || vocab.len() > MAX_TOKENS {
        return Err(error(path, format!("{} tokens; expected 1 to {MAX_TOKENS}", vocab.len())));
    }
    let mut ids = Vec::with_capacity(vocab.len());
    for (token, value) in vocab {
        match id(value).filter(|id| u64::from(*id) < MAX_TOKENS as u64) {
            Some(id) if !token.is_empty() => ids.push(id),
            _ => {
                let token = token.escape_debug();
                return Err(error(path, format!("token '{token}' with id {value} makes no sense")));
            }
        }
    }
    ids.sort_unstable();
    if let Some([twice, ..]) = ids.windows(2).find(|pair| pair.first() == pair.last()) {
        return Err(error(path, format!("two tokens have id {twice}")));
    }
    if let Some(unk) = fields.get("unk_token").and_then(Value::as_str)
        && !vocab.contains_key(unk)
    {
        return Err(error(path, format!("unk_token '{unk}' is not in the vocabulary")));
    }
    let highest = ids.last().copied().unwrap_or(0);
    let bpe = serde_json::from_value(model).map_err(|e| error(path, format!("model: {e}")))?;
    Ok(Vocabulary { bpe, highest })
}

fn added_tokens(path: &Path, value: Value) -> Result<Vec<(AddedToken, u32)>> {
    let Value::Array(list) = value else { return Ok(Vec::new()) };
    list.into_iter()
        .map(|entry| {
            let number = entry.get("id").and_then(id).filter(|id| u64::from(*id) < MAX_TOKENS as u64);
            let token: AddedToken =
                serde_json::from_value(entry).map_err(|e| error(path, format!("added token: {e}")))?;
            match number {
                Some(number) if !token.content.is_empty() => Ok((token, number)),
                _ => Err(error(path, format!("added token '{}' is empty or has no valid id", token.content))),
            }
        })
        .collect()
}

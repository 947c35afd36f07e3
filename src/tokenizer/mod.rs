//! Text to token ids and back: loading a tokenizer from a model folder or from what a GGUF
//! file says, encoding, decoding, and chats. The algorithms are the `tokenizers` crate's;
//! this module owns which of its parts a model needs, the BOS rule, and the guard that keeps
//! special tokens out of what a user wrote. It reads no GGUF file and knows no model.

mod bounds;
mod builtin;
mod export;
mod gguf;
mod huggingface;
mod stream;
mod template;
mod words;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::{
    AddedToken, Decoder, DecoderWrapper, Model, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper,
    Token, TokenizerImpl,
};

pub use builtin::TEMPLATES;
pub use stream::DecodeStream;

use crate::{Error, Result};
use template::{ChatTemplate, Segment, SpecialTable, SpecialToken};
use words::Words;

/// More tokens than any vocabulary has; a file that claims more is damaged.
const MAX_TOKENS: usize = 1 << 22;
/// More added tokens than any vocabulary has. They all go into one search automaton.
const MAX_ADDED: usize = 1 << 16;
/// Bytes of the longest added token. Each may take a thousand in the automaton.
const MAX_ADDED_BYTES: usize = 512;

/// Texts of special tokens that end a turn or a document. Many files name only one end token,
/// while the model was trained to write another of these at the end of an answer.
const END_TEXTS: [&str; 11] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<end_of_turn>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<|end_of_turn|>",
    "<|END_OF_TURN_TOKEN|>",
    "[|endofturn|]",
    "<|EOT|>",
];

/// What a GGUF file says of its tokenizer. The caller fills it from the metadata.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GgufVocab {
    /// `tokenizer.ggml.model`: `gpt2` or `llama`.
    pub model: String,
    /// `tokenizer.ggml.pre`: the name of the pre-tokenizer; only `gpt2` needs it.
    pub pre: Option<String>,
    /// `tokenizer.ggml.tokens`: the vocabulary; the index is the id.
    pub tokens: Vec<String>,
    /// `tokenizer.ggml.scores`: one a token; needed by `llama`, else possibly empty.
    pub scores: Vec<f32>,
    /// `tokenizer.ggml.token_type`: one a token, or empty.
    pub token_types: Vec<i32>,
    /// `tokenizer.ggml.merges`: two tokens with a space between; needed by `gpt2`.
    pub merges: Vec<String>,
    /// `tokenizer.ggml.bos_token_id`.
    pub bos: Option<u32>,
    /// `tokenizer.ggml.eos_token_id`.
    pub eos: Option<u32>,
    /// `tokenizer.ggml.eot_token_id`.
    pub eot: Option<u32>,
    /// `tokenizer.ggml.unknown_token_id`.
    pub unk: Option<u32>,
    /// `tokenizer.ggml.add_bos_token`.
    pub add_bos: Option<bool>,
    /// `tokenizer.ggml.add_eos_token`. Not used: a prompt that goes on must not end.
    pub add_eos: Option<bool>,
    /// `tokenizer.ggml.add_space_prefix`; only `llama` honours it.
    pub add_space_prefix: Option<bool>,
    /// `tokenizer.chat_template`.
    pub chat_template: Option<String>,
}

/// What becomes of special tokens that are written in a text, such as `<|im_end|>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Specials {
    /// They become their ids: for prompts whose author may steer the model.
    Parse,
    /// They stay text: for what comes from somebody else.
    Text,
}

/// One message of a chat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user`, `assistant`, `tool`, or what else the template knows.
    pub role: String,
    /// What was said.
    pub content: String,
    /// What else the template may ask for: `tool_calls`, `tool_call_id`, `name`, `reasoning_content`.
    pub fields: Map<String, Value>,
}

impl Message {
    /// A message of `role` that says `content`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), fields: Map::new() }
    }
}

/// What a chat template is given besides the messages.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChatOptions {
    /// The tools that the model may call, as the template wants them: usually JSON schemas of functions.
    pub tools: Vec<Value>,
    /// Variables that some templates know, such as `enable_thinking`.
    pub variables: Map<String, Value>,
}

/// A model's tokenizer. Cloning is cheap; clones share everything.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
    template: Option<Arc<ChatTemplate>>,
}

/// The pipeline of the `tokenizers` crate around a shared model.
type Engine = TokenizerImpl<SharedBpe, NormalizerWrapper, Words, PostProcessorWrapper, DecoderWrapper>;

struct Inner {
    path: PathBuf,
    /// Special tokens in the text become ids.
    parse: Engine,
    /// Special tokens in the text stay text.
    text: Engine,
    /// As `text`, for a text that is not the beginning of the sequence.
    text_later: Engine,
    specials: SpecialTable,
    byte_fallback: bool,
    kind: String,
    bos: Option<u32>,
    adds_bos: bool,
    ends: Vec<u32>,
    vocab_size: usize,
    /// Variables for templates: `bos_token`, `eos_token` and so on.
    variables: Vec<(String, String)>,
}

/// What a loader hands over; [`Tokenizer::assemble`] makes a tokenizer of it.
struct Parts {
    bpe: BPE,
    normalizer: Option<NormalizerWrapper>,
    pre_tokenizer: Option<PreTokenizerWrapper>,
    /// The pre-tokenizer for texts that follow other text, where that differs.
    later_pre_tokenizer: Option<PreTokenizerWrapper>,
    decoder: Option<DecoderWrapper>,
    /// The decoder joins byte tokens such as `<0x0A>` to characters.
    byte_fallback: bool,
    /// Tokens that are found in the text before anything else, with the ids they must get.
    added: Vec<(AddedToken, u32)>,
    vocab_size: usize,
    kind: String,
    bos: Option<u32>,
    adds_bos: bool,
    ends: Vec<u32>,
    template: Option<String>,
    /// Variables for templates: `bos_token`, `eos_token` and so on.
    variables: Vec<(String, String)>,
}

impl Tokenizer {
    /// Reads a model folder in Hugging Face's layout: `tokenizer.json` and, where they are there,
    /// `tokenizer_config.json`, `special_tokens_map.json`, `generation_config.json`,
    /// `config.json`, `chat_template.jinja` and `chat_template.json`.
    pub fn from_folder(dir: &Path) -> Result<Self> {
        let path = dir.join(huggingface::TOKENIZER_FILE);
        Self::assemble(&path, huggingface::parts(dir)?)
    }

    /// What a GGUF file is to say of the tokenizer in a model folder, for a model whose embedding has
    /// `rows` rows. An error if GGUF can't say it.
    pub fn vocab(dir: &Path, rows: usize) -> Result<GgufVocab> {
        export::vocab(dir, rows)
    }

    /// Builds the tokenizer that a GGUF file describes. `path` serves only for messages.
    pub fn from_gguf(path: &Path, vocab: GgufVocab) -> Result<Self> {
        Self::assemble(path, gguf::parts(path, vocab)?)
    }

    fn assemble(path: &Path, parts: Parts) -> Result<Self> {
        if parts.added.len() > MAX_ADDED {
            return Err(error(path, format!("{} added tokens; at most {MAX_ADDED}", parts.added.len())));
        }
        if let Some((token, id)) = parts.added.iter().find(|(token, _)| token.content.len() > MAX_ADDED_BYTES)
        {
            let found = token.content.len();
            return Err(error(
                path,
                format!("added token {id} has {found} bytes; at most {MAX_ADDED_BYTES}"),
            ));
        }
        let mut parse = Engine::new(SharedBpe(Arc::new(parts.bpe)));
        parse.with_normalizer(parts.normalizer);
        let words = |pre: &PreTokenizerWrapper| Words::new(path, pre);
        parse.with_pre_tokenizer(parts.pre_tokenizer.as_ref().map(words).transpose()?);
        parse.with_decoder(parts.decoder);
        let tokens: Vec<AddedToken> = parts.added.iter().map(|(token, _)| token.clone()).collect();
        parse.add_tokens(&tokens);
        check_added(path, &parse, &parts.added)?;
        let mut ends = parts.ends;
        ends.extend(
            parts.added.iter().filter(|(t, _)| END_TEXTS.contains(&t.content.as_str())).map(|(_, id)| *id),
        );
        ends.sort_unstable();
        ends.dedup();
        let mut text = parse.clone();
        text.set_encode_special_tokens(true);
        let mut text_later = text.clone();
        if let Some(later) = parts.later_pre_tokenizer {
            text_later.with_pre_tokenizer(Some(words(&later)?));
        }
        let specials = parts.added.iter().filter(|(token, _)| token.special).map(|(token, id)| {
            SpecialToken { text: token.content.clone(), id: *id, lstrip: token.lstrip, rstrip: token.rstrip }
        });
        let inner = Inner {
            path: path.to_path_buf(),
            specials: SpecialTable::new(specials),
            parse,
            text,
            text_later,
            byte_fallback: parts.byte_fallback,
            kind: parts.kind,
            bos: parts.bos,
            adds_bos: parts.adds_bos && parts.bos.is_some(),
            ends,
            vocab_size: parts.vocab_size,
            variables: parts.variables,
        };
        let tokenizer = Self { inner: Arc::new(inner), template: None };
        Ok(match parts.template {
            Some(source) => tokenizer.with_template(&source),
            None => tokenizer,
        })
    }

    /// The ids of `text`, without BOS.
    pub fn encode(&self, text: &str, specials: Specials) -> Result<Vec<u32>> {
        let engine = match specials {
            Specials::Parse => &self.inner.parse,
            Specials::Text => &self.inner.text,
        };
        self.run(engine, text)
    }

    /// The ids of a prompt: with BOS in front if the model wants it and `text` has not written it.
    pub fn encode_prompt(&self, text: &str, specials: Specials) -> Result<Vec<u32>> {
        Ok(self.with_bos(self.encode(text, specials)?))
    }

    /// The ids of a chat, up to where the assistant is to answer.
    ///
    /// Special tokens that the template writes become ids; the same strings in a message stay
    /// text, so that a message can't end its own turn. BOS is there once if the template writes
    /// it or the model wants it.
    pub fn encode_chat(&self, messages: &[Message]) -> Result<Vec<u32>> {
        self.encode_chat_with(messages, &ChatOptions::default())
    }

    /// As [`encode_chat`](Self::encode_chat), with tools and variables; special tokens in tools stay text,
    /// too.
    pub fn encode_chat_with(&self, messages: &[Message], options: &ChatOptions) -> Result<Vec<u32>> {
        let table = &self.inner.specials;
        let mark = self.template()?.free_mark(messages, options)?;
        let guarded: Vec<Message> = messages
            .iter()
            .map(|m| Message {
                // Templates write roles into special tokens, such as <|user|>.
                role: table.guard_name(&m.role, mark),
                content: table.guard(&m.content, mark),
                fields: m.fields.iter().map(|(k, v)| (k.clone(), table.guard_value(v, mark))).collect(),
            })
            .collect();
        let tools = options.tools.iter().map(|tool| table.guard_value(tool, mark)).collect();
        let options = ChatOptions { tools, variables: options.variables.clone() };
        let rendered = self.template()?.render(&guarded, &options, true)?;
        let mut ids = Vec::new();
        let mut at_start = true;
        for segment in table.split(&rendered, mark) {
            match segment {
                Segment::Special(id) => ids.push(id),
                Segment::Text(text) if at_start => ids.extend(self.run(&self.inner.text, &text)?),
                Segment::Text(text) => ids.extend(self.run(&self.inner.text_later, &text)?),
            }
            at_start = false;
        }
        Ok(self.with_bos(ids))
    }

    /// The chat as the template writes it, special tokens included.
    pub fn render_chat(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        self.template()?.render(messages, &ChatOptions::default(), add_generation_prompt)
    }

    /// The text of `ids`. Ids that the vocabulary lacks are passed over; so are special tokens
    /// with `skip_special`. Bytes that are no UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        let mut tokens: Vec<String> =
            ids.iter().filter_map(|&id| self.visible_token(id, skip_special)).collect();
        if self.inner.byte_fallback {
            tokens = stream::replace_stray_bytes(tokens);
        }
        match self.inner.parse.get_decoder() {
            Some(decoder) => decoder.decode(tokens).map_err(|e| error(&self.inner.path, e)),
            None => Ok(tokens.join(" ")),
        }
    }

    /// A decoder for ids that come one by one.
    pub fn stream(&self) -> DecodeStream {
        DecodeStream::new(self.clone())
    }

    /// The raw vocabulary string of a token, such as `Ġthe` or `▁the`.
    pub fn token_text(&self, id: u32) -> Option<String> {
        self.inner.parse.id_to_token(id)
    }

    /// One more than the highest id.
    pub fn vocab_size(&self) -> usize {
        self.inner.vocab_size
    }

    /// The token that begins a sequence, where the model has one.
    pub fn bos(&self) -> Option<u32> {
        self.inner.bos
    }

    /// Whether the model wants BOS in front of a prompt.
    pub fn adds_bos(&self) -> bool {
        self.inner.adds_bos
    }

    /// Whether `id` ends an answer: end of sequence or end of turn.
    pub fn is_end(&self, id: u32) -> bool {
        self.inner.ends.binary_search(&id).is_ok()
    }

    /// All ids that end an answer, ascending.
    pub fn end_ids(&self) -> &[u32] {
        &self.inner.ends
    }

    /// Whether there is a chat template. It may still fail to parse; rendering tells.
    pub fn has_chat_template(&self) -> bool {
        self.template.is_some()
    }

    /// The same tokenizer with another chat template, in Jinja.
    #[must_use]
    pub fn with_template(&self, source: &str) -> Self {
        let template = ChatTemplate::new(source.to_string(), self.inner.variables.clone());
        Self { inner: self.inner.clone(), template: Some(Arc::new(template)) }
    }

    /// The same tokenizer with the chat template that is built in under a name: `llama2`, `chatml`,
    /// `mistral`, `gemma`, `phi3`, `llama3`, `zephyr` and others, which the error for an unknown one lists.
    pub fn with_built_in_template(&self, name: &str) -> Result<Self> {
        let is_token = |text: &str| {
            let added = self.inner.parse.get_added_vocabulary();
            added.is_special_token(text)
        };
        match builtin::template(name, is_token) {
            Some(source) => Ok(self.with_template(source)),
            None => {
                let known = builtin::names();
                Err(Error::option("chat-template", format!("expected one of {known}, found '{name}'")))
            }
        }
    }

    /// What kind of tokenizer this is, for people: `byte-level BPE (smollm)`.
    pub fn kind(&self) -> &str {
        &self.inner.kind
    }

    fn template(&self) -> Result<&ChatTemplate> {
        let none = || Error::ChatTemplate { message: "the model brings none".into() };
        self.template.as_deref().ok_or_else(none)
    }

    fn run(&self, engine: &Engine, text: &str) -> Result<Vec<u32>> {
        let encoding = engine.encode_fast(text, false).map_err(|e| error(&self.inner.path, e))?;
        Ok(encoding.get_ids().to_vec())
    }

    fn with_bos(&self, mut ids: Vec<u32>) -> Vec<u32> {
        if let Some(bos) = self.inner.bos
            && self.inner.adds_bos
            && ids.first() != Some(&bos)
        {
            ids.insert(0, bos);
        }
        ids
    }

    /// The token's string, unless decoding passes over it.
    fn visible_token(&self, id: u32, skip_special: bool) -> Option<String> {
        let engine = &self.inner.parse;
        engine
            .id_to_token(id)
            .filter(|token| !(skip_special && engine.get_added_vocabulary().is_special_token(token)))
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Inner { path, kind, vocab_size, .. } = &*self.inner;
        write!(f, "Tokenizer({kind}, {vocab_size} tokens, {})", path.display())
    }
}

/// Checks that the added tokens have their ids. The crate hands out ids on its own where the
/// vocabulary lacks a token; with others the model would read something else than was written.
fn check_added(path: &Path, engine: &Engine, added: &[(AddedToken, u32)]) -> Result<()> {
    for (token, id) in added {
        let got = engine.token_to_id(&token.content);
        if got != Some(*id) {
            let got = got.map_or("none".into(), |g| g.to_string());
            let text = token.content.escape_debug();
            return Err(error(path, format!("added token '{text}' is to have id {id}, but would get {got}")));
        }
    }
    Ok(())
}

/// An error about the tokenizer in `path`.
fn error(path: &Path, message: impl ToString) -> Error {
    Error::Tokenizer { path: path.to_path_buf(), message: message.to_string() }
}

/// A BPE model that several engines share: they differ only in how they treat special tokens,
/// and the vocabulary is by far the largest part.
#[derive(Clone)]
struct SharedBpe(Arc<BPE>);

impl Model for SharedBpe {
    type Trainer = BpeTrainer;

    fn tokenize(&self, sequence: &str) -> tokenizers::Result<Vec<Token>> {
        self.0.tokenize(sequence)
    }

    fn token_to_id(&self, token: &str) -> Option<u32> {
        self.0.token_to_id(token)
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        self.0.id_to_token(id)
    }

    fn get_vocab(&self) -> HashMap<String, u32> {
        Model::get_vocab(&*self.0)
    }

    fn get_vocab_size(&self) -> usize {
        self.0.get_vocab_size()
    }

    fn save(&self, folder: &Path, prefix: Option<&str>) -> tokenizers::Result<Vec<PathBuf>> {
        self.0.save(folder, prefix)
    }

    fn get_trainer(&self) -> BpeTrainer {
        BpeTrainer::default()
    }
}

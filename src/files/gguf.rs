//! GGUF: one file with metadata and tensors, versions 2 and 3, little endian.
//! Owns the container and typed access to its metadata; what a key means is `model`'s business, what
//! a block's bytes mean is `quant`'s. Arrays of metadata stay in the file until someone asks for
//! them: a vocabulary has 150 thousand strings, and most runs look at them once.

mod reader;
mod writer;

pub use writer::GgufWriter;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::map::{Cursor, LFS_POINTER, MappedFile};
use crate::dtype::WeightFormat;
use crate::host::{HostTensor, TensorSource};
use crate::tokenizer::GgufVocab;
use crate::{Error, Result};

const ALIGNMENT: &str = "general.alignment";
const DEFAULT_ALIGNMENT: u64 = 32;

/// GGML's tensors have at most this many dimensions.
const MAX_DIMS: u32 = 4;

/// How deep arrays may lie in arrays. Files that people use have no nested arrays at all.
const MAX_DEPTH: u32 = 4;

/// The fewest bytes of a metadata entry: length of the key, type, one byte of value.
const MIN_ENTRY_BYTES: usize = 8 + 4 + 1;

/// The fewest bytes of a tensor's description: length of the name, dimensions, type, offset.
const MIN_TENSOR_BYTES: usize = 8 + 4 + 4 + 8;

/// Types of metadata values, in the order of GGUF's numbers for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
#[rustfmt::skip]
pub enum Kind { U8, I8, U16, I16, U32, I32, F32, Bool, String, Array, U64, I64, F64 }

impl Kind {
    #[rustfmt::skip]
    const ALL: [Self; 13] = [
        Self::U8, Self::I8, Self::U16, Self::I16, Self::U32, Self::I32, Self::F32, Self::Bool, Self::String,
        Self::Array, Self::U64, Self::I64, Self::F64,
    ];

    /// GGUF's number.
    fn number(self) -> u32 {
        Self::ALL.iter().position(|kind| *kind == self).unwrap_or_default() as u32
    }

    /// Bytes of a value; the fewest possible where values differ in length.
    const fn min_bytes(self) -> usize {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 | Self::String => 8,
            Self::Array => 12,
        }
    }
}

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    U64(u64),
    I64(i64),
    F32(f32),
    F64(f64),
    Bool(bool),
    String(String),
    /// Read it with [`Gguf::strings`] and the like.
    Array(Array),
}

/// An array of metadata that is still in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Array {
    /// The type of each element.
    pub kind: Kind,
    /// Number of elements.
    pub len: usize,
    /// Where the first element begins in the file.
    at: usize,
    /// Where the last one ends.
    end: usize,
}

impl Value {
    fn integer(&self) -> Option<i128> {
        Some(match *self {
            Self::U8(v) => v.into(),
            Self::I8(v) => v.into(),
            Self::U16(v) => v.into(),
            Self::I16(v) => v.into(),
            Self::U32(v) => v.into(),
            Self::I32(v) => v.into(),
            Self::U64(v) => v.into(),
            Self::I64(v) => v.into(),
            _ => return None,
        })
    }

    /// Integers count as well: some writers store a round number as one.
    fn finite(&self) -> Option<f32> {
        let value = match *self {
            Self::F32(v) => v,
            Self::F64(v) => v as f32,
            _ => self.integer()? as f32,
        };
        value.is_finite().then_some(value)
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::F32(v) => v.fmt(f),
            Self::F64(v) => v.fmt(f),
            Self::Bool(v) => v.fmt(f),
            // A chat template may have thousands of characters.
            Self::String(v) => write!(f, "{:?}", v.chars().take(60).collect::<String>()),
            Self::Array(v) => write!(f, "an array of {} {:?}", v.len, v.kind),
            _ => self.integer().unwrap_or_default().fmt(f),
        }
    }
}

/// How GGML stores a tensor.
#[derive(Debug, Clone, Copy)]
struct Storage {
    /// None for whole numbers: they hold no weights, but are no reason to refuse a file.
    format: Option<WeightFormat>,
    name: &'static str,
    block_len: usize,
    block_bytes: usize,
}

/// GGML's names for its types by number; empty where a number is not in use any more.
#[rustfmt::skip]
const TYPE_NAMES: [&str; 42] = [
    "F32", "F16", "Q4_0", "Q4_1", "", "", "Q5_0", "Q5_1", "Q8_0", "Q8_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K",
    "Q6_K", "Q8_K", "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S", "IQ2_S", "IQ4_XS", "I8",
    "I16", "I32", "I64", "F64", "IQ1_M", "BF16", "", "", "", "TQ1_0", "TQ2_0", "", "", "", "MXFP4", "NVFP4",
    "Q1_0",
];

impl Storage {
    fn from_number(number: u32, tensor: &str) -> Result<Self> {
        let name = TYPE_NAMES.get(number as usize).copied().unwrap_or_default();
        let format = WeightFormat::ALL.into_iter().find(|f| f.name().eq_ignore_ascii_case(name));
        let (block_len, block_bytes) = match (format, name) {
            (Some(format), _) => (format.block_len(), format.block_bytes()),
            (None, "I8") => (1, 1),
            (None, "I16") => (1, 2),
            (None, "I32") => (1, 4),
            (None, "I64") => (1, 8),
            (None, "") => return Err(unsupported(tensor, format!("GGML type {number}"))),
            (None, _) => return Err(unsupported(tensor, name.into())),
        };
        Ok(Self { format, name, block_len, block_bytes })
    }
}

fn unsupported(tensor: &str, format: String) -> Error {
    Error::UnsupportedFormat { name: tensor.into(), format, supported: WeightFormat::supported() }
}

struct Entry {
    name: String,
    storage: Storage,
    /// Outermost dimension first, as in [`HostTensor`].
    shape: Vec<usize>,
    /// Place in the file; while the table is being read, the place after the table.
    bytes: Range<usize>,
    /// Where the table describes the tensor, for messages.
    at: usize,
}

/// An open GGUF file. Its structure was checked when it was opened.
///
/// Tensors of whole numbers hold no weights: they are left out, and
/// [`format_problem`](Self::format_problem) tells of them.
pub struct Gguf {
    file: MappedFile,
    version: u32,
    values: BTreeMap<String, Value>,
    entries: Vec<Entry>,
    /// Name to place in `entries`.
    by_name: HashMap<String, usize>,
}

impl Gguf {
    /// Opens and checks the file at `path`.
    pub fn open(path: &Path) -> Result<Self> {
        Self::from_file(MappedFile::open(path)?)
    }

    /// The same for a file in memory; `path` is what errors call it.
    pub fn from_bytes(path: impl Into<PathBuf>, bytes: Vec<u8>) -> Result<Self> {
        Self::from_file(MappedFile::from_bytes(path, bytes))
    }

    fn from_file(file: MappedFile) -> Result<Self> {
        let mut cursor = Cursor::new(&file, 0);
        if file.is_lfs_pointer() {
            return Err(cursor.fail(LFS_POINTER));
        }
        let version = cursor.version()?;
        let tensors = cursor.count("the number of tensors", MIN_TENSOR_BYTES)?;
        let values = cursor.count("the number of metadata entries", MIN_ENTRY_BYTES)?;
        let (values, alignment) = cursor.metadata(values)?;
        let mut entries = Vec::new();
        let mut by_name = HashMap::new();
        for number in 0..tensors {
            let entry = cursor.tensor()?;
            if by_name.insert(entry.name.clone(), number).is_some() {
                return Err(cursor.fail_at(entry.at, format!("tensor '{}' is there twice", entry.name)));
            }
            entries.push(entry);
        }
        cursor.place(&mut entries, alignment)?;
        let gguf = Self { version, values, entries, by_name, file };
        match gguf.opt_u64("split.count")? {
            Some(n) if n > 1 => {
                Err(gguf.error("split.count", format!("expected one file, found one of {n}")))
            }
            _ => Ok(gguf),
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// The version of the container: 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// A metadata value as it is.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    /// All metadata keys, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.values.keys().map(String::as_str)
    }

    /// A string.
    pub fn str(&self, key: &str) -> Result<&str> {
        self.require(key, "a string", self.opt_str(key)?)
    }

    /// A string, if it is there.
    pub fn opt_str(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a string", |v| match v {
            Value::String(s) => Some(s.as_str()),
            _ => None,
        })
    }

    /// An integer from zero, of any integer type.
    pub fn u64(&self, key: &str) -> Result<u64> {
        self.require(key, "a non-negative integer", self.opt_u64(key)?)
    }

    /// An integer from zero, of any integer type, if it is there.
    pub fn opt_u64(&self, key: &str) -> Result<Option<u64>> {
        self.typed(key, "a non-negative integer", |v| v.integer()?.try_into().ok())
    }

    /// A finite number of any type.
    pub fn f32(&self, key: &str) -> Result<f32> {
        self.require(key, "a finite number", self.opt_f32(key)?)
    }

    /// A finite number of any type, if it is there.
    pub fn opt_f32(&self, key: &str) -> Result<Option<f32>> {
        self.typed(key, "a finite number", Value::finite)
    }

    /// True or false, if it is there.
    pub fn opt_bool(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "a bool", bool_of)
    }

    /// An array of strings, if it is there.
    pub fn strings(&self, key: &str) -> Result<Option<Vec<String>>> {
        self.array(key, "strings", |v| match v {
            Value::String(s) => Some(s),
            _ => None,
        })
    }

    /// An array of finite numbers, if it is there.
    pub fn f32s(&self, key: &str) -> Result<Option<Vec<f32>>> {
        self.array(key, "finite numbers", |v| v.finite())
    }

    /// An array of integers that fit into 32 bits, if it is there.
    pub fn i32s(&self, key: &str) -> Result<Option<Vec<i32>>> {
        self.array(key, "32-bit integers", |v| v.integer()?.try_into().ok())
    }

    /// An array of bools, if it is there.
    pub fn bools(&self, key: &str) -> Result<Option<Vec<bool>>> {
        self.array(key, "bools", |v| bool_of(&v))
    }

    /// What the file says about its tokenizer, checked for lists of equal length.
    pub fn vocab(&self) -> Result<GgufVocab> {
        let tokens_key = "tokenizer.ggml.tokens";
        let tokens = self.require(tokens_key, "an array of strings", self.strings(tokens_key)?)?;
        let vocab = GgufVocab {
            model: self.str("tokenizer.ggml.model")?.into(),
            pre: self.opt_str("tokenizer.ggml.pre")?.map(Into::into),
            scores: self.f32s("tokenizer.ggml.scores")?.unwrap_or_default(),
            token_types: self.i32s("tokenizer.ggml.token_type")?.unwrap_or_default(),
            merges: self.strings("tokenizer.ggml.merges")?.unwrap_or_default(),
            bos: self.token_id("tokenizer.ggml.bos_token_id", tokens.len())?,
            eos: self.token_id("tokenizer.ggml.eos_token_id", tokens.len())?,
            eot: self.token_id("tokenizer.ggml.eot_token_id", tokens.len())?,
            unk: self.token_id("tokenizer.ggml.unknown_token_id", tokens.len())?,
            add_bos: self.opt_bool("tokenizer.ggml.add_bos_token")?,
            add_eos: self.opt_bool("tokenizer.ggml.add_eos_token")?,
            add_space_prefix: self.opt_bool("tokenizer.ggml.add_space_prefix")?,
            chat_template: self.opt_str("tokenizer.chat_template")?.map(Into::into),
            tokens,
        };
        let lists = [("scores", vocab.scores.len()), ("token_type", vocab.token_types.len())];
        match lists.into_iter().find(|&(_, len)| len != 0 && len != vocab.tokens.len()) {
            Some((name, len)) => {
                let message = format!("expected {} elements, one a token, found {len}", vocab.tokens.len());
                Err(self.error(&format!("tokenizer.ggml.{name}"), message))
            }
            None => Ok(vocab),
        }
    }

    /// A special token. Converters write ids past the vocabulary, such as -1, for tokens that the
    /// model does not have.
    fn token_id(&self, key: &str, tokens: usize) -> Result<Option<u32>> {
        let id = self.typed(key, "an integer", Value::integer)?;
        Ok(id.filter(|&id| id < tokens as i128).and_then(|id| id.try_into().ok()))
    }

    /// Why [`tensor`](TensorSource::tensor) gives nothing for a tensor that the file does hold:
    /// an [`Error::UnsupportedFormat`]. None when it can be used or is not there at all.
    pub fn format_problem(&self, name: &str) -> Option<Error> {
        let storage = self.entries[*self.by_name.get(name)?].storage;
        storage.format.is_none().then(|| unsupported(name, storage.name.into()))
    }

    /// Names of the tensors that hold no weights and are left out.
    pub fn left_out(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().filter(|e| e.storage.format.is_none()).map(|e| e.name.as_str())
    }

    /// An [`Error::Config`] about `key`, for checks that are the caller's.
    pub fn error(&self, key: &str, message: impl Into<String>) -> Error {
        Error::Config { path: self.path().into(), key: key.into(), message: message.into() }
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match convert(value) {
            Some(converted) => Ok(Some(converted)),
            None => Err(self.error(key, format!("expected {expected}, found {value}"))),
        }
    }

    fn require<T>(&self, key: &str, expected: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| self.error(key, format!("expected {expected}, found nothing")))
    }

    fn array<T>(
        &self,
        key: &str,
        expected: &str,
        convert: impl Fn(Value) -> Option<T>,
    ) -> Result<Option<Vec<T>>> {
        let expected = format!("an array of {expected}");
        let found = self.typed(key, &expected, |v| match v {
            Value::Array(array) => Some(array),
            _ => None,
        })?;
        let Some(array) = found else { return Ok(None) };
        let mut cursor = Cursor::new(&self.file, array.at);
        let mut elements = Vec::new();
        for number in 0..array.len {
            let Some(element) = convert(cursor.value(array.kind, key, 0)?) else {
                let message = format!("expected {expected}, found a {:?} as element {number}", array.kind);
                return Err(self.error(key, message));
            };
            elements.push(element);
        }
        Ok(Some(elements))
    }
}

impl TensorSource for Gguf {
    fn names(&self) -> Vec<&str> {
        self.entries.iter().filter(|e| e.storage.format.is_some()).map(|e| e.name.as_str()).collect()
    }

    fn tensor(&self, name: &str) -> Option<HostTensor<'_>> {
        let entry = &self.entries[*self.by_name.get(name)?];
        Some(HostTensor {
            format: entry.storage.format?,
            shape: entry.shape.clone(),
            bytes: self.file.bytes().get(entry.bytes.clone())?.into(),
        })
    }
}

impl fmt::Debug for Gguf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gguf")
            .field("file", &self.file)
            .field("values", &self.values.len())
            .field("tensors", &self.entries.len())
            .finish_non_exhaustive()
    }
}

fn bool_of(value: &Value) -> Option<bool> {
    match *value {
        Value::Bool(v) => Some(v),
        _ => None,
    }
}

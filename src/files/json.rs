//! Typed access to the JSON files that lie beside the weights, such as `config.json`.
//! Owns reading, the size limit and messages that say what was expected and what was found;
//! which keys there are and what they mean is `model`'s business.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::host::read_limited;
use crate::{Error, Result};

/// Longer files are refused. The index of a model with 100 thousand tensors takes about 15 MB.
const MAX_BYTES: u64 = 32 << 20;

/// What errors about the file as a whole give for a key.
const WHOLE_FILE: &str = "(whole file)";

/// A JSON object and the file that it comes from: a whole file, or an object inside of one.
///
/// The accessors that begin with `opt_` give None for a key that is missing or null, the others an
/// [`Error::Config`]. A value of the wrong type is an [`Error::Config`] in both.
#[derive(Debug, Clone, PartialEq)]
pub struct JsonFile {
    path: PathBuf,
    /// Keys of the enclosing objects, each with a dot behind it.
    prefix: String,
    object: Map<String, Value>,
}

impl JsonFile {
    /// Reads the file at `path`, which must hold one JSON object.
    pub fn open(path: &Path) -> Result<Self> {
        match read_limited(path, MAX_BYTES)? {
            Some(bytes) => Self::from_slice(path, &bytes),
            None => Err(whole_file(path, format!("expected at most {MAX_BYTES} bytes, found more"))),
        }
    }

    /// Parses `text`; `path` is what errors call it.
    pub fn from_str(path: impl Into<PathBuf>, text: &str) -> Result<Self> {
        Self::from_slice(path, text.as_bytes())
    }

    fn from_slice(path: impl Into<PathBuf>, bytes: &[u8]) -> Result<Self> {
        let path = path.into();
        match serde_json::from_slice(bytes) {
            Ok(Value::Object(object)) => Ok(Self { path, prefix: String::new(), object }),
            Ok(other) => Err(whole_file(&path, format!("expected a JSON object, found {}", shown(&other)))),
            Err(e) => Err(whole_file(&path, format!("not valid JSON: {e}"))),
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The same with the keys of `defaults`, a JSON object, that it lacks.
    pub fn with_defaults(&self, defaults: &str) -> Result<Self> {
        let mut all = Self { prefix: self.prefix.clone(), ..Self::from_str(&self.path, defaults)? };
        all.object.extend(self.object.clone());
        Ok(all)
    }

    /// All keys, in the file's order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.object.keys().map(String::as_str)
    }

    /// The value as it is, unless it is missing or null.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.object.get(key).filter(|v| !v.is_null())
    }

    /// A string.
    pub fn str(&self, key: &str) -> Result<&str> {
        self.require(key, "a string", self.opt_str(key)?)
    }

    /// A string, if it is there.
    pub fn opt_str(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a string", Value::as_str)
    }

    /// A list of strings, if it is there.
    pub fn opt_strs(&self, key: &str) -> Result<Option<Vec<&str>>> {
        self.typed(key, "a list of strings", |v| v.as_array()?.iter().map(Value::as_str).collect())
    }

    /// A positive integer.
    pub fn usize(&self, key: &str) -> Result<usize> {
        self.require(key, POSITIVE, self.opt_usize(key)?)
    }

    /// A positive integer, if it is there.
    pub fn opt_usize(&self, key: &str) -> Result<Option<usize>> {
        self.typed(key, POSITIVE, |v| usize::try_from(v.as_u64()?).ok().filter(|&n| n > 0))
    }

    /// An integer from zero, if it is there: for token ids and counts that may be zero.
    pub fn opt_u64(&self, key: &str) -> Result<Option<u64>> {
        self.typed(key, "a non-negative integer", Value::as_u64)
    }

    /// A number.
    pub fn f64(&self, key: &str) -> Result<f64> {
        self.require(key, "a number", self.opt_f64(key)?)
    }

    /// A number, if it is there.
    pub fn opt_f64(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", Value::as_f64)
    }

    /// A list of numbers, if it is there.
    pub fn opt_f64s(&self, key: &str) -> Result<Option<Vec<f64>>> {
        self.typed(key, "a list of numbers", |v| v.as_array()?.iter().map(Value::as_f64).collect())
    }

    /// True or false, if it is there.
    pub fn opt_bool(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", Value::as_bool)
    }

    /// The object under `key`, if it is there. Its errors give the full key, as in `a.b`.
    pub fn object(&self, key: &str) -> Result<Option<Self>> {
        let object = self.typed(key, "an object", Value::as_object)?;
        // Configurations are small: a copy costs less than a second type that borrows.
        Ok(object.map(|o| Self {
            path: self.path.clone(),
            prefix: format!("{}{key}.", self.prefix),
            object: o.clone(),
        }))
    }

    /// An [`Error::Config`] about `key`, for checks that are the caller's.
    pub fn error(&self, key: &str, message: impl Into<String>) -> Error {
        Error::Config {
            path: self.path.clone(),
            key: format!("{}{key}", self.prefix),
            message: message.into(),
        }
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        match convert(value) {
            Some(converted) => Ok(Some(converted)),
            None => Err(self.error(key, format!("expected {expected}, found {}", shown(value)))),
        }
    }

    fn require<T>(&self, key: &str, expected: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| self.error(key, format!("expected {expected}, found nothing")))
    }
}

const POSITIVE: &str = "a positive integer";

fn whole_file(path: &Path, message: String) -> Error {
    Error::Config { path: path.into(), key: WHOLE_FILE.into(), message }
}

/// A value for a message: containers by their kind, everything else as JSON, cut when it is long.
fn shown(value: &Value) -> String {
    const LONGEST: usize = 60;
    let text = match value {
        Value::Array(items) => return format!("a list of {}", items.len()),
        Value::Object(_) => return "an object".into(),
        other => other.to_string(),
    };
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

//! Writing GGUF: version 3, little endian, tensors aligned to 32 bytes.

use std::io::Write;
use std::path::Path;

use super::{DEFAULT_ALIGNMENT, Gguf, Kind, TYPE_NAMES, Value};
use crate::dtype::WeightFormat;
use crate::tokenizer::GgufVocab;
use crate::{Error, Result};

/// What a file will hold: metadata, then the names, shapes and formats of its tensors.
#[derive(Debug, Default)]
pub struct GgufWriter {
    values: u64,
    metadata: Vec<u8>,
    tensors: Vec<(String, Vec<usize>, WeightFormat)>,
}

fn string(text: &str, out: &mut Vec<u8>) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// GGML's number of a format; floats of eight bits have none.
fn number(format: WeightFormat) -> Option<u32> {
    TYPE_NAMES.iter().position(|name| name.eq_ignore_ascii_case(format.name())).map(|place| place as u32)
}

/// The formats that have one, for messages.
fn supported() -> String {
    let all = WeightFormat::ALL.into_iter().filter(|format| number(*format).is_some());
    all.map(|format| format.name().to_uppercase()).collect::<Vec<_>>().join(", ")
}

/// Bytes of a tensor.
fn bytes(shape: &[usize], format: WeightFormat) -> u64 {
    shape.iter().product::<usize>() as u64 / format.block_len() as u64 * format.block_bytes() as u64
}

impl GgufWriter {
    fn entry(&mut self, key: &str, kind: Kind) {
        self.values += 1;
        string(key, &mut self.metadata);
        self.metadata.extend(kind.number().to_le_bytes());
    }

    /// A metadata entry of an unsigned integer.
    pub fn u32(&mut self, key: &str, value: u32) {
        self.entry(key, Kind::U32);
        self.metadata.extend(value.to_le_bytes());
    }

    /// One of a number.
    pub fn f32(&mut self, key: &str, value: f32) {
        self.entry(key, Kind::F32);
        self.metadata.extend(value.to_le_bytes());
    }

    /// One of yes or no.
    pub fn bool(&mut self, key: &str, value: bool) {
        self.entry(key, Kind::Bool);
        self.metadata.push(u8::from(value));
    }

    /// One of text.
    pub fn string(&mut self, key: &str, value: &str) {
        self.entry(key, Kind::String);
        string(value, &mut self.metadata);
    }

    /// One of several values, each written by `put`.
    fn array<T>(&mut self, key: &str, kind: Kind, values: &[T], put: impl Fn(&T, &mut Vec<u8>)) {
        self.entry(key, Kind::Array);
        self.metadata.extend(kind.number().to_le_bytes());
        self.metadata.extend((values.len() as u64).to_le_bytes());
        values.iter().for_each(|value| put(value, &mut self.metadata));
    }

    /// The tokenizer, as [`Gguf::vocab`] reads it.
    pub fn vocab(&mut self, vocab: &GgufVocab) {
        let key = |name: &str| format!("tokenizer.ggml.{name}");
        let text = |text: &String, out: &mut Vec<u8>| string(text, out);
        self.string(&key("model"), &vocab.model);
        vocab.pre.iter().for_each(|pre| self.string(&key("pre"), pre));
        self.array(&key("tokens"), Kind::String, &vocab.tokens, text);
        if !vocab.scores.is_empty() {
            self.array(&key("scores"), Kind::F32, &vocab.scores, |v, out| out.extend(v.to_le_bytes()));
        }
        if !vocab.token_types.is_empty() {
            self.array(&key("token_type"), Kind::I32, &vocab.token_types, |v, out| {
                out.extend(v.to_le_bytes())
            });
        }
        if !vocab.merges.is_empty() {
            self.array(&key("merges"), Kind::String, &vocab.merges, text);
        }
        let ids =
            [("bos", vocab.bos), ("eos", vocab.eos), ("eot", vocab.eot), ("unknown", vocab.unk)].into_iter();
        for (name, id) in ids.filter_map(|(name, id)| Some((name, id?))) {
            self.u32(&key(&format!("{name}_token_id")), id);
        }
        let choices = [
            ("add_bos_token", vocab.add_bos),
            ("add_eos_token", vocab.add_eos),
            ("add_space_prefix", vocab.add_space_prefix),
        ];
        for (name, choice) in choices.into_iter().filter_map(|(name, choice)| Some((name, choice?))) {
            self.bool(&key(name), choice);
        }
        vocab.chat_template.iter().for_each(|template| self.string("tokenizer.chat_template", template));
    }

    /// The entry `key` of another file, if it has that.
    pub fn copy(&mut self, from: &Gguf, key: &str) {
        let Some(value) = from.get(key) else { return };
        let mut scalar = |kind, bytes: &[u8]| {
            self.entry(key, kind);
            self.metadata.extend(bytes);
        };
        match value {
            Value::U8(v) => scalar(Kind::U8, &v.to_le_bytes()),
            Value::I8(v) => scalar(Kind::I8, &v.to_le_bytes()),
            Value::U16(v) => scalar(Kind::U16, &v.to_le_bytes()),
            Value::I16(v) => scalar(Kind::I16, &v.to_le_bytes()),
            Value::U32(v) => scalar(Kind::U32, &v.to_le_bytes()),
            Value::I32(v) => scalar(Kind::I32, &v.to_le_bytes()),
            Value::U64(v) => scalar(Kind::U64, &v.to_le_bytes()),
            Value::I64(v) => scalar(Kind::I64, &v.to_le_bytes()),
            Value::F32(v) => scalar(Kind::F32, &v.to_le_bytes()),
            Value::F64(v) => scalar(Kind::F64, &v.to_le_bytes()),
            Value::Bool(v) => scalar(Kind::Bool, &[u8::from(*v)]),
            Value::String(v) => self.string(key, v),
            Value::Array(array) => {
                self.entry(key, Kind::Array);
                // Type and length of an array come before its elements.
                self.metadata.extend(&from.file.bytes()[array.at - 12..array.end]);
            }
        }
    }

    /// A tensor; `shape` has the outermost dimension first, as everywhere else here.
    pub fn tensor(&mut self, name: &str, shape: &[usize], format: WeightFormat) {
        self.tensors.push((name.to_string(), shape.to_vec(), format));
    }

    /// Writes everything to `out`, which errors call `path`; `data(i, out)` is to write all bytes of
    /// tensor `i`. A format that GGUF has no number for is an error before anything is written.
    pub fn write<W: Write>(
        &self,
        path: &Path,
        out: &mut W,
        mut data: impl FnMut(usize, &mut W) -> Result<()>,
    ) -> Result<()> {
        let mut head = b"GGUF".to_vec();
        head.extend(3u32.to_le_bytes());
        head.extend((self.tensors.len() as u64).to_le_bytes());
        head.extend(self.values.to_le_bytes());
        head.extend(&self.metadata);
        let mut offset = 0u64;
        for (name, shape, format) in &self.tensors {
            string(name, &mut head);
            head.extend((shape.len() as u32).to_le_bytes());
            for dim in shape.iter().rev() {
                head.extend((*dim as u64).to_le_bytes());
            }
            let number = number(*format).ok_or_else(|| Error::UnsupportedFormat {
                name: name.clone(),
                format: format!("{format} in GGUF"),
                supported: supported(),
            })?;
            head.extend(number.to_le_bytes());
            head.extend(offset.to_le_bytes());
            offset += bytes(shape, *format).next_multiple_of(DEFAULT_ALIGNMENT);
        }
        let padding = |len: u64| vec![0; (len.next_multiple_of(DEFAULT_ALIGNMENT) - len) as usize];
        head.extend(padding(head.len() as u64));
        let failed = |e| Error::io(path, e);
        out.write_all(&head).map_err(failed)?;
        for (i, (_, shape, format)) in self.tensors.iter().enumerate() {
            data(i, out)?;
            out.write_all(&padding(bytes(shape, *format))).map_err(failed)?;
        }
        Ok(())
    }
}

//! Reading GGUF's parts from its bytes: metadata, tensor descriptions, and where tensors lie.
//! Every count, length and offset is checked here, before anything is allocated or indexed.

use std::collections::BTreeMap;
use std::ops::Range;

use super::{ALIGNMENT, Array, DEFAULT_ALIGNMENT, Entry, Kind, MAX_DEPTH, MAX_DIMS, Storage, Value};
use crate::Result;
use crate::files::map::Cursor;

/// What GGUF's parts look like in the bytes.
impl Cursor<'_> {
    /// Magic and version.
    pub(super) fn version(&mut self) -> Result<u32> {
        match &self.array("the magic")? {
            b"GGUF" => {}
            other => {
                let found = other.escape_ascii();
                return Err(self.fail_at(0, format!("bad magic: expected 'GGUF', found '{found}'")));
            }
        }
        let at = self.at;
        match self.u32("the version")? {
            version @ 2..=3 => Ok(version),
            // A file of the other byte order has the same magic: it shows in the first number.
            v if (1..=255).contains(&v.swap_bytes()) => {
                Err(self.fail_at(at, "the file is big-endian; only little-endian files can be read"))
            }
            version => Err(self.fail_at(at, format!("version {version} is not supported; supported: 2, 3"))),
        }
    }

    /// The metadata and the alignment that it gives for tensors.
    pub(super) fn metadata(&mut self, count: usize) -> Result<(BTreeMap<String, Value>, u64)> {
        let mut values = BTreeMap::new();
        let mut alignment = DEFAULT_ALIGNMENT;
        for _ in 0..count {
            let at = self.at;
            let key = self.string("a metadata key")?;
            let kind = self.kind(key)?;
            let value = self.value(kind, key, 0)?;
            if key == ALIGNMENT {
                let power =
                    value.integer().and_then(|v| u64::try_from(v).ok()).filter(|v| v.is_power_of_two());
                alignment = power.ok_or_else(|| {
                    self.fail_at(at, format!("{ALIGNMENT}: expected a power of two, found {value}"))
                })?;
            }
            if values.insert(key.into(), value).is_some() {
                return Err(self.fail_at(at, format!("metadata key '{key}' is there twice")));
            }
        }
        Ok((values, alignment))
    }

    pub(super) fn kind(&mut self, owner: &str) -> Result<Kind> {
        let at = self.at;
        let number = self.u32("a type of value")?;
        let kind = Kind::ALL.get(number as usize).copied();
        kind.ok_or_else(|| self.fail_at(at, format!("{owner} has a value of unknown type {number}")))
    }

    pub(super) fn value(&mut self, kind: Kind, what: &str, depth: u32) -> Result<Value> {
        Ok(match kind {
            Kind::U8 => Value::U8(u8::from_le_bytes(self.array(what)?)),
            Kind::I8 => Value::I8(i8::from_le_bytes(self.array(what)?)),
            Kind::U16 => Value::U16(u16::from_le_bytes(self.array(what)?)),
            Kind::I16 => Value::I16(i16::from_le_bytes(self.array(what)?)),
            Kind::U32 => Value::U32(self.u32(what)?),
            Kind::I32 => Value::I32(i32::from_le_bytes(self.array(what)?)),
            Kind::U64 => Value::U64(self.u64(what)?),
            Kind::I64 => Value::I64(i64::from_le_bytes(self.array(what)?)),
            Kind::F32 => Value::F32(f32::from_le_bytes(self.array(what)?)),
            Kind::F64 => Value::F64(f64::from_le_bytes(self.array(what)?)),
            Kind::Bool => match self.array(what)? {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                [other] => {
                    return Err(self.fail(format!("{what}: expected a bool before this byte, found {other}")));
                }
            },
            Kind::String => Value::String(self.string(what)?.into()),
            Kind::Array => Value::Array(self.skip_array(what, depth + 1)?),
        })
    }

    /// Checks an array and leaves its elements in the file.
    pub(super) fn skip_array(&mut self, what: &str, depth: u32) -> Result<Array> {
        if depth > MAX_DEPTH {
            return Err(self.fail(format!("{what}: arrays are nested more than {MAX_DEPTH} deep")));
        }
        let kind = self.kind(what)?;
        let len = self.count(what, kind.min_bytes())?;
        let at = self.at;
        match kind {
            Kind::String => (0..len).try_for_each(|_| self.string(what).map(drop))?,
            Kind::Array => (0..len).try_for_each(|_| self.skip_array(what, depth + 1).map(drop))?,
            // `count` has made sure that the product is no longer than the file.
            _ => self.take(len * kind.min_bytes(), what).map(drop)?,
        }
        Ok(Array { kind, len, at, end: self.at })
    }

    /// One description of the table of tensors. Its place stays relative to the first tensor's.
    pub(super) fn tensor(&mut self) -> Result<Entry> {
        let at = self.at;
        let name = self.string("a tensor's name")?;
        let dims = self.u32("the number of dimensions")?;
        if dims > MAX_DIMS {
            let message = format!("tensor '{name}': expected at most {MAX_DIMS} dimensions, found {dims}");
            return Err(self.fail_at(at, message));
        }
        let mut shape = Vec::new();
        for _ in 0..dims {
            let dim = self.u64("a dimension")?;
            match usize::try_from(dim) {
                Ok(dim) if dim > 0 => shape.push(dim),
                _ => return Err(self.fail_at(at, format!("tensor '{name}' has a dimension of {dim}"))),
            }
        }
        // The file's order is innermost first.
        shape.reverse();
        let storage = Storage::from_number(self.u32("a tensor's type")?, name)?;
        let offset = self.u64("a tensor's offset")?;
        let fail = |message: String| self.fail_at(at, format!("tensor '{name}': {message}"));
        let (row, block_len) = (shape.last().copied().unwrap_or(1), storage.block_len);
        if !row.is_multiple_of(block_len) {
            let name = storage.name;
            return Err(fail(format!(
                "rows of {row} values are not whole blocks of {name}, {block_len} values"
            )));
        }
        let values = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let len = values.and_then(|n| (n / block_len).checked_mul(storage.block_bytes));
        let begin = usize::try_from(offset).ok();
        match begin.zip(len).and_then(|(begin, len)| Some(begin..begin.checked_add(len)?)) {
            Some(bytes) => Ok(Entry { name: name.into(), storage, shape, bytes, at }),
            None => Err(fail(format!("shape {shape:?} at offset {offset} is larger than any file"))),
        }
    }

    /// Moves the places of all tensors behind the table, where the cursor stands now, and checks
    /// that they are aligned, in the file, and apart.
    pub(super) fn place(&self, entries: &mut [Entry], alignment: u64) -> Result<()> {
        let too_large = |e: &Entry| {
            let message = format!("truncated: tensor '{}' ends past the end of the file", e.name);
            self.fail_at(e.at, message)
        };
        let start =
            (self.at as u64).checked_next_multiple_of(alignment).and_then(|s| usize::try_from(s).ok());
        for entry in &mut *entries {
            let Range { start: begin, end } = entry.bytes;
            if !(begin as u64).is_multiple_of(alignment) {
                let message =
                    format!("tensor '{}': offset {begin} is not a multiple of {alignment}", entry.name);
                return Err(self.fail_at(entry.at, message));
            }
            let start = start.ok_or_else(|| too_large(entry))?;
            let end = start.checked_add(end).filter(|&e| e <= self.len()).ok_or_else(|| too_large(entry))?;
            entry.bytes = start + begin..end;
        }
        let mut sorted: Vec<_> = entries.iter().collect();
        sorted.sort_by_key(|e| e.bytes.start);
        for pair in sorted.windows(2) {
            if let [first, second] = pair
                && second.bytes.start < first.bytes.end
            {
                let message = format!("tensors '{}' and '{}' overlap", first.name, second.name);
                return Err(self.fail_at(second.at, message));
            }
        }
        Ok(())
    }
}

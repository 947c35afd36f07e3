//! Hugging Face's safetensors: one file or several shards in a folder, as one set of named tensors.
//! Owns the index, the header and the checks of both. The `safetensors` crate defines what a header
//! entry is and how wide each dtype is; the layout is checked here, because a message has to name the
//! tensor and the offsets. What the tensors are for is `model`'s business.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, TensorInfo};
use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use super::json::JsonFile;
use super::map::{LFS_POINTER, MappedFile};
use crate::dtype::WeightFormat;
use crate::host::{HostTensor, TensorSource};
use crate::{Error, Result};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Bytes before the header: its length as a little-endian u64.
const LENGTH_BYTES: usize = 8;

/// The limit that the format itself sets for a header.
const MAX_HEADER_BYTES: usize = 100_000_000;

/// All tensors of a folder with `model.safetensors` or its shards.
///
/// Tensors of a type that holds no weights, such as an i64 buffer of positions, do not get in the
/// way: they are left out, and [`format_problem`](Self::format_problem) tells of them.
pub struct SafetensorsFolder {
    path: PathBuf,
    files: Vec<MappedFile>,
    entries: Vec<Entry>,
    /// Name to place in `entries`.
    by_name: HashMap<String, usize>,
}

struct Entry {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    /// Place in `files`.
    file: usize,
    /// Place in the file, counted from its start.
    bytes: Range<usize>,
}

impl SafetensorsFolder {
    /// Opens `model.safetensors`; without it the shards that `model.safetensors.index.json` names;
    /// without that every `*.safetensors` file of the folder.
    pub fn open(dir: &Path) -> Result<Self> {
        let (single, index) = (dir.join(SINGLE), dir.join(INDEX));
        if single.exists() {
            return Self::open_files(dir, &[single]);
        }
        if !index.exists() {
            return Self::open_files(dir, &list(dir)?);
        }
        let index = JsonFile::open(&index)?;
        let weight_map = weight_map(&index)?;
        let folder = Self::open_files(dir, &shards(dir, &index, &weight_map)?)?;
        folder.check_index(&index, &weight_map)?;
        Ok(folder)
    }

    fn open_files(dir: &Path, paths: &[PathBuf]) -> Result<Self> {
        Self::from_files(dir, paths.iter().map(|p| MappedFile::open(p)).collect::<Result<_>>()?)
    }

    /// The tensors of files that are open already; `path` is what to call them together.
    pub fn from_files(path: impl Into<PathBuf>, files: Vec<MappedFile>) -> Result<Self> {
        let mut folder = Self { path: path.into(), files, entries: Vec::new(), by_name: HashMap::new() };
        for number in 0..folder.files.len() {
            for entry in read_file(&folder.files[number], number)? {
                folder.insert(entry)?;
            }
        }
        Ok(folder)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files, in the order in which they are read.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(MappedFile::path)
    }

    /// Why [`tensor`](TensorSource::tensor) gives nothing for a tensor that the files do hold:
    /// an [`Error::UnsupportedFormat`]. None when it can be used or is not there at all.
    pub fn format_problem(&self, name: &str) -> Option<Error> {
        let entry = &self.entries[*self.by_name.get(name)?];
        weight_format(entry.dtype).is_none().then(|| Error::UnsupportedFormat {
            name: name.into(),
            format: entry.dtype.to_string(),
            supported: "F32, F16, BF16, F8_E4M3, F8_E5M2".into(),
        })
    }

    /// The names of all tensors, those that hold no weights included.
    pub fn stored_names(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|entry| entry.name.as_str())
    }

    /// Type, shape and bytes of a tensor of any type.
    pub fn stored(&self, name: &str) -> Option<(Dtype, &[usize], &[u8])> {
        let entry = &self.entries[*self.by_name.get(name)?];
        Some((entry.dtype, &entry.shape, self.files[entry.file].bytes().get(entry.bytes.clone())?))
    }

    fn insert(&mut self, entry: Entry) -> Result<()> {
        if let Some(&first) = self.by_name.get(&entry.name) {
            let first = self.files[self.entries[first].file].path();
            let message = format!("tensor '{}' is in {} already", entry.name, first.display());
            return Err(invalid(self.files[entry.file].path(), message));
        }
        self.by_name.insert(entry.name.clone(), self.entries.len());
        self.entries.push(entry);
        Ok(())
    }

    /// Every tensor of the index has to be in the very shard that the index names for it.
    fn check_index(&self, index: &JsonFile, weight_map: &[(&str, &str)]) -> Result<()> {
        let holder = |name: &str| Some(self.files[self.entries[*self.by_name.get(name)?].file].path());
        let missing: Vec<_> = weight_map
            .iter()
            .filter(|(name, file)| holder(name) != Some(&self.path.join(file)))
            .map(|(name, file)| format!("'{name}' in {file}"))
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        let message = format!("{} tensor(s) are not where it says: {}", missing.len(), missing.join(", "));
        Err(index.error(WEIGHT_MAP, message))
    }
}

impl TensorSource for SafetensorsFolder {
    fn names(&self) -> Vec<&str> {
        let usable = self.entries.iter().filter(|e| weight_format(e.dtype).is_some());
        usable.map(|e| e.name.as_str()).collect()
    }

    fn tensor(&self, name: &str) -> Option<HostTensor<'_>> {
        let (dtype, shape, bytes) = self.stored(name)?;
        Some(HostTensor { format: weight_format(dtype)?, shape: shape.to_vec(), bytes: bytes.into() })
    }
}

impl fmt::Debug for SafetensorsFolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SafetensorsFolder")
            .field("files", &self.files)
            .field("tensors", &self.entries.len())
            .finish_non_exhaustive()
    }
}

fn weight_format(dtype: Dtype) -> Option<WeightFormat> {
    match dtype {
        Dtype::F32 => Some(WeightFormat::F32),
        Dtype::F16 => Some(WeightFormat::F16),
        Dtype::BF16 => Some(WeightFormat::BF16),
        Dtype::F8_E4M3 => Some(WeightFormat::F8_E4M3),
        Dtype::F8_E5M2 => Some(WeightFormat::F8_E5M2),
        _ => None,
    }
}

fn invalid(path: &Path, message: impl Into<String>) -> Error {
    Error::Safetensors { path: path.into(), message: message.into() }
}

const WEIGHT_MAP: &str = "weight_map";

/// The index's pairs of a tensor's name and the name of its shard.
fn weight_map(index: &JsonFile) -> Result<Vec<(&str, &str)>> {
    let Some(value) = index.value(WEIGHT_MAP) else {
        return Err(index.error(WEIGHT_MAP, "expected an object, found nothing"));
    };
    let pairs = value.as_object().map(|o| o.iter().map(|(name, file)| Some((name.as_str(), file.as_str()?))));
    pairs
        .and_then(Iterator::collect::<Option<Vec<_>>>)
        .filter(|pairs| !pairs.is_empty())
        .ok_or_else(|| index.error(WEIGHT_MAP, "expected an object with names of tensors and of files"))
}

/// The shards of an index, each once, in sorted order.
fn shards(dir: &Path, index: &JsonFile, weight_map: &[(&str, &str)]) -> Result<Vec<PathBuf>> {
    let names: BTreeSet<_> = weight_map.iter().map(|(_, file)| *file).collect();
    // An index that comes with a download must not make us read outside of the folder.
    if let Some(name) = names.iter().find(|n| !is_plain_name(n)) {
        return Err(index.error(WEIGHT_MAP, format!("expected plain file names, found '{name}'")));
    }
    let missing: Vec<_> = names.iter().copied().filter(|n| !dir.join(n).exists()).collect();
    if !missing.is_empty() {
        let message = format!("{} file(s) are missing: {}", missing.len(), missing.join(", "));
        return Err(index.error(WEIGHT_MAP, message));
    }
    Ok(names.into_iter().map(|n| dir.join(n)).collect())
}

/// True when `name` can mean nothing but a file in the folder, on any system.
fn is_plain_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && !name.contains(['/', '\\', ':', '\0'])
}

/// All `*.safetensors` files in `dir`, in sorted order; an error when there are none.
fn list(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|e| Error::io(dir, e))? {
        let path = entry.map_err(|e| Error::io(dir, e))?.path();
        if path.extension().is_some_and(|e| e == "safetensors") {
            paths.push(path);
        }
    }
    if paths.is_empty() {
        let message = format!("no {SINGLE}, no {INDEX} and no other .safetensors file in this folder");
        return Err(Error::io(dir, io::Error::new(io::ErrorKind::NotFound, message)));
    }
    paths.sort();
    Ok(paths)
}

/// The checked tensors of one file, in the order of their bytes.
fn read_file(file: &MappedFile, number: usize) -> Result<Vec<Entry>> {
    let path = file.path();
    let (header, data) = split(file)?;
    let Header(mut tensors) = serde_json::from_slice(header)
        .map_err(|e| invalid(path, format!("expected a header in JSON with the format's entries: {e}")))?;
    tensors.sort_by_key(|(_, info)| info.data_offsets);
    check_layout(&tensors, data.len()).map_err(|message| invalid(path, message))?;
    let place = |at: usize| LENGTH_BYTES + header.len() + at;
    let entries = tensors.into_iter().map(|(name, info)| Entry {
        name,
        dtype: info.dtype,
        shape: info.shape,
        file: number,
        bytes: place(info.data_offsets.0)..place(info.data_offsets.1),
    });
    Ok(entries.collect())
}

/// Splits a file into the header's text and the tensors' bytes.
fn split(file: &MappedFile) -> Result<(&[u8], &[u8])> {
    let fail = |message: String| Err(invalid(file.path(), message));
    let bytes = file.bytes();
    if file.is_lfs_pointer() {
        return fail(LFS_POINTER.into());
    }
    let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_BYTES>() else {
        return fail(format!("truncated: {} bytes, the header's length alone takes 8", bytes.len()));
    };
    let length = u64::from_le_bytes(*length);
    let Some(len) = usize::try_from(length).ok().filter(|&n| n <= MAX_HEADER_BYTES) else {
        return fail(format!("oversized header: {length} bytes, at most {MAX_HEADER_BYTES} are allowed"));
    };
    match rest.split_at_checked(len) {
        Some(parts) => Ok(parts),
        None => fail(format!("truncated header: {len} bytes expected, {} found", rest.len())),
    }
}

/// Checks that `tensors`, sorted by offset, have the sizes of their shapes and fill `data_len` bytes
/// without overlap or hole, as the format demands.
fn check_layout(tensors: &[(String, TensorInfo)], data_len: usize) -> Result<(), String> {
    let mut previous = "the header";
    let mut end_of_previous = 0;
    for (name, info) in tensors {
        let (begin, end) = info.data_offsets;
        if end < begin {
            return Err(format!("tensor '{name}' begins at byte {begin} and ends at byte {end} of the data"));
        }
        let Some(size) = byte_size(info) else {
            return Err(format!("tensor '{name}': shape {:?} of {} has no size", info.shape, info.dtype));
        };
        if size != end - begin {
            let (shape, dtype, found) = (&info.shape, info.dtype, end - begin);
            return Err(format!("tensor '{name}': {shape:?} of {dtype} takes {size} bytes, found {found}"));
        }
        if begin < end_of_previous {
            return Err(format!("tensors '{previous}' and '{name}' overlap at byte {begin} of the data"));
        }
        if begin > end_of_previous {
            let gap = begin - end_of_previous;
            return Err(format!("{gap} bytes between '{previous}' and '{name}' belong to no tensor"));
        }
        if end > data_len {
            return Err(format!(
                "truncated: tensor '{name}' ends at byte {end} of the data, found {data_len}"
            ));
        }
        (previous, end_of_previous) = (name, end);
    }
    match data_len - end_of_previous {
        0 => Ok(()),
        extra => Err(format!("{extra} bytes after '{previous}' belong to no tensor")),
    }
}

/// Bytes that the shape and the dtype ask for; None when that overflows or is no whole number.
fn byte_size(info: &TensorInfo) -> Option<usize> {
    let values = info.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
    let bits = values.checked_mul(info.dtype.bitsize())?;
    bits.is_multiple_of(8).then_some(bits / 8)
}

/// The header's entries in the order of the text. A type of our own instead of a map, because a map
/// would let the second of two entries with the same name win.
struct Header(Vec<(String, TensorInfo)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with one entry a tensor")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let mut tensors = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            let info = map.next_value().map_err(|e| A::Error::custom(format!("tensor '{name}': {e}")))?;
            tensors.push((name, info));
        }
        Ok(Header(tensors))
    }
}

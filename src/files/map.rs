//! A file's bytes, memory-mapped so that weights go to the GPU without a second copy in host memory,
//! and a cursor that can't leave them. Owns the crate's one `unsafe` map; what the bytes mean is the
//! business of the modules beside it.

use std::fmt;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::host::open_regular;
use crate::{Error, Result};

/// A whole file as one slice. The file must not be changed or truncated while it is open.
pub struct MappedFile {
    path: PathBuf,
    storage: Storage,
}

enum Storage {
    Mapped(Mmap),
    Owned(Vec<u8>),
}

impl MappedFile {
    /// Maps the file at `path`.
    pub fn open(path: &Path) -> Result<Self> {
        let (file, len) = open_regular(path)?;
        // Some systems refuse to map nothing.
        if len == 0 {
            return Ok(Self::from_bytes(path, Vec::new()));
        }
        #[expect(unsafe_code, reason = "a memory map is the only way to read weights without copying them")]
        // SAFETY: the map is read-only and private to this type. It is sound as long as nobody changes
        // or truncates the file while it is open, which the type's documentation asks of the user;
        // no system offers a way to enforce it. Readers check every offset against the mapped length
        // and accept any byte pattern, so a changed file yields wrong numbers, not wrong memory.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, e))?;
        Ok(Self { path: path.into(), storage: Storage::Mapped(map) })
    }

    /// Bytes that are in memory already; `path` is what errors call them.
    pub fn from_bytes(path: impl Into<PathBuf>, bytes: Vec<u8>) -> Self {
        Self { path: path.into(), storage: Storage::Owned(bytes) }
    }

    /// The file's contents.
    pub fn bytes(&self) -> &[u8] {
        match &self.storage {
            Storage::Mapped(map) => map,
            Storage::Owned(bytes) => bytes,
        }
    }

    /// Where the file lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// True for the small text file that a clone without Git LFS leaves in the place of weights:
    /// a mistake common enough for readers to name it.
    pub(super) fn is_lfs_pointer(&self) -> bool {
        self.bytes().starts_with(b"version https://git-lfs")
    }
}

/// What to tell about a file for which [`MappedFile::is_lfs_pointer`] holds.
pub(super) const LFS_POINTER: &str =
    "this is a Git LFS pointer, not the file itself; fetch the file with `git lfs pull`";

impl fmt::Debug for MappedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MappedFile").field("path", &self.path).field("len", &self.bytes().len()).finish()
    }
}

/// Reads forward through a file; nothing is taken, and nothing allocated, that is not there.
/// Only GGUF is read in this way, so that is what errors call the file.
pub(super) struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    /// Where the next byte is taken; at most the length.
    pub(super) at: usize,
}

impl<'a> Cursor<'a> {
    /// A cursor at byte `at` of `file`.
    pub(super) fn new(file: &'a MappedFile, at: usize) -> Self {
        Self { path: file.path(), bytes: file.bytes(), at }
    }

    /// Length of the whole file.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// An error about the cursor's place.
    pub(super) fn fail(&self, message: impl Into<String>) -> Error {
        self.fail_at(self.at, message)
    }

    /// An error about a place that was passed before.
    pub(super) fn fail_at(&self, at: usize, message: impl Into<String>) -> Error {
        Error::Gguf { path: self.path.into(), at: at as u64, message: message.into() }
    }

    /// The next `len` bytes.
    pub(super) fn take(&mut self, len: usize, what: &str) -> Result<&'a [u8]> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let Some(bytes) = rest.get(..len) else {
            return Err(self.fail(format!("truncated: {what} takes {len} bytes, {} are left", rest.len())));
        };
        self.at += len;
        Ok(bytes)
    }

    /// The next `N` bytes.
    pub(super) fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N, what)?);
        Ok(array)
    }

    /// A little-endian number of 32 bits.
    pub(super) fn u32(&mut self, what: &str) -> Result<u32> {
        self.array(what).map(u32::from_le_bytes)
    }

    /// A little-endian number of 64 bits.
    pub(super) fn u64(&mut self, what: &str) -> Result<u64> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A number of things of which each takes `min_bytes` or more of what is left of the file.
    pub(super) fn count(&mut self, what: &str, min_bytes: usize) -> Result<usize> {
        let at = self.at;
        let count = self.u64(what)?;
        let left = self.bytes.len().saturating_sub(self.at);
        let most = left / min_bytes.max(1);
        usize::try_from(count).ok().filter(|&n| n <= most).ok_or_else(|| {
            self.fail_at(
                at,
                format!("{what}: expected at most {most} in the {left} bytes left, found {count}"),
            )
        })
    }

    /// A string with its length before it.
    pub(super) fn string(&mut self, what: &str) -> Result<&'a str> {
        let len = self.count(what, 1)?;
        let at = self.at;
        let bytes = self.take(len, what)?;
        std::str::from_utf8(bytes).map_err(|_| self.fail_at(at, format!("{what} is not UTF-8")))
    }
}

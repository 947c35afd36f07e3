//! Files that take their final name only when they are whole.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use wgllama::{Error, Result};

/// A file in the making, beside where it will be. Dropped before it is finished, it is removed.
pub struct Output {
    path: PathBuf,
    part: PathBuf,
    /// Where to write.
    pub file: BufWriter<File>,
}

impl Output {
    /// Opens the file, so that a name that can't be written is known before the work is done.
    pub fn create(path: &Path) -> Result<Self> {
        let mut name = path.file_name().unwrap_or_default().to_os_string();
        name.push(".part");
        let part = path.with_file_name(name);
        let file = File::create(&part).map_err(|e| Error::io(path, e))?;
        Ok(Self { path: path.to_path_buf(), part, file: BufWriter::new(file) })
    }

    /// The name that it will have.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|e| Error::io(&self.path, e))
    }

    /// Gives it its name.
    pub fn finish(mut self) -> Result<()> {
        self.file.flush().map_err(|e| Error::io(&self.path, e))?;
        std::fs::rename(&self.part, &self.path).map_err(|e| Error::io(&self.path, e))
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        // After a success it is not there any more.
        let _ = std::fs::remove_file(&self.part);
    }
}

//! Tensors that live in host memory, usually in a memory map; how files get there, and how fast it is read.

use std::borrow::Cow;
use std::fs::File;
use std::hint::black_box;
use std::io::{self, Read};
use std::path::Path;
use std::time::Instant;

use crate::dtype::WeightFormat;
use crate::error::{Error, Result};

/// One stored tensor: a view of its bytes, or bytes that were made of what is stored.
#[derive(Debug, Clone, PartialEq)]
pub struct HostTensor<'a> {
    /// Storage format of `bytes`.
    pub format: WeightFormat,
    /// Row-major shape, outermost dimension first: `[rows, columns]` for a matrix.
    pub shape: Vec<usize>,
    /// The stored bytes: exactly as many as `shape` and `format` ask for.
    pub bytes: Cow<'a, [u8]>,
}

impl HostTensor<'_> {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// True when a dimension is zero.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Where a model's tensors come from: a GGUF file, or one or several safetensors files.
pub trait TensorSource: Send + Sync {
    /// All names, in the order of the file.
    fn names(&self) -> Vec<&str>;

    /// Format and shape of the tensor called `name`, which may cost less than its bytes.
    fn describe(&self, name: &str) -> Option<(WeightFormat, Vec<usize>)> {
        self.tensor(name).map(|tensor| (tensor.format, tensor.shape))
    }

    /// The tensor called `name`.
    fn tensor(&self, name: &str) -> Option<HostTensor<'_>>;
}

/// Bytes per second that all cores together read from memory, the best of some times: the ceiling of an adapter that is
/// these cores.
pub fn read_rate() -> f64 {
    // 192 MiB, beyond any cache.
    const WORDS: usize = 24 << 20;
    let words = vec![1u64; WORDS];
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let pass = || {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for part in words.chunks(WORDS.div_ceil(threads)) {
                scope.spawn(|| black_box(part.iter().fold(0, |sum: u64, word| sum.wrapping_add(*word))));
            }
        });
        start.elapsed().as_secs_f64()
    };
    let seconds = (0..8).map(|_| pass()).fold(f64::INFINITY, f64::min);
    (WORDS * size_of::<u64>()) as f64 / seconds
}

/// Reads a file whole; None when it is longer than `limit` bytes.
pub fn read_limited(path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    let (file, len) = open_regular(path)?;
    if len > limit {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    // The length was only a snapshot; the limit holds for a file that grows meanwhile, too.
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|e| Error::io(path, e))?;
    Ok((bytes.len() as u64 <= limit).then_some(bytes))
}

/// Opens `path` and tells its length. Folders and devices are refused before they are opened:
/// opening a named pipe would wait for a writer for ever.
pub fn open_regular(path: &Path) -> Result<(File, u64)> {
    let metadata = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
    if !metadata.is_file() {
        return Err(Error::io(path, io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")));
    }
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    Ok((file, metadata.len()))
}

/// Bytes of memory that the system could still give, where it says so.
pub fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// The most memory that this process has held at once, in bytes, where the system says so.
pub fn peak_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

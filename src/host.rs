//! Tensors that live in host memory, usually in a memory map.

use std::borrow::Cow;

use crate::dtype::WeightFormat;

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

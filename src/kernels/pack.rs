//! The layout of weights on the GPU: per shard one buffer of two planes, all quants of all
//! rows as runs of 16 bytes, then all scales; both are described beside the shader part of
//! each format. Rows are padded with zeros to whole groups of 32 weights. Formats stay what
//! they are: nothing is expanded and nothing is rounded.

use crate::dtype::WeightFormat;
use crate::shape::{GROUP, ROW_ALIGN, round_up};

/// Planes start at a multiple of this many bytes, the largest offset alignment in WebGPU.
const ALIGN: usize = 256;

/// Bytes of quants that a group of 32 weights takes.
const fn group_bytes(format: WeightFormat) -> usize {
    match format {
        WeightFormat::F32 => 128,
        WeightFormat::F16 | WeightFormat::BF16 => 64,
        WeightFormat::Q8_0 => 32,
        WeightFormat::Q4_0 | WeightFormat::Q4_1 => 16,
    }
}

/// Bytes of scales that a group of 32 weights takes.
const fn scale_bytes(format: WeightFormat) -> usize {
    match format {
        WeightFormat::F32 | WeightFormat::F16 | WeightFormat::BF16 => 0,
        WeightFormat::Q8_0 | WeightFormat::Q4_0 => 2,
        WeightFormat::Q4_1 => 4,
    }
}

/// Where the planes of a shard lie in its buffer, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Planes {
    /// Storage format.
    pub format: WeightFormat,
    /// Stored rows, padding included.
    pub rows: usize,
    /// Groups of 32 weights in a row.
    pub groups: usize,
    /// Length of the plane of quants.
    pub quant_bytes: usize,
    /// Start of the plane of scales.
    pub scale_at: usize,
    /// Length of the plane of scales; at least 4, so that it can always be bound.
    pub scale_bytes: usize,
}

impl Planes {
    /// The layout of `rows` rows of `cols` weights.
    pub fn new(format: WeightFormat, rows: usize, cols: usize) -> Self {
        let rows = round_up(rows, ROW_ALIGN);
        let groups = cols.div_ceil(GROUP);
        let quant_bytes = rows * groups * group_bytes(format);
        let scale_bytes = round_up(rows * groups * scale_bytes(format), 4).max(4);
        Self { format, rows, groups, quant_bytes, scale_at: round_up(quant_bytes, ALIGN), scale_bytes }
    }

    /// Size of the buffer.
    pub fn bytes(&self) -> usize {
        self.scale_at + round_up(self.scale_bytes, 16)
    }

    /// Bytes of quants and of scales that one row takes. Rows are packed in even numbers, so
    /// that two rows' scales always fill whole words.
    pub fn row_bytes(&self) -> (usize, usize) {
        (self.groups * group_bytes(self.format), self.groups * scale_bytes(self.format))
    }
}

/// Appends one stored row, padded to whole groups, to both planes.
///
/// `row` holds whole blocks; the planes grow by [`Planes::row_bytes`].
pub fn pack_row(planes: &Planes, row: &[u8], quants: &mut Vec<u8>, scales: &mut Vec<u8>) {
    let (quant_bytes, scale_bytes) = planes.row_bytes();
    let (quant_end, scale_end) = (quants.len() + quant_bytes, scales.len() + scale_bytes);
    match planes.format {
        WeightFormat::F32 | WeightFormat::F16 | WeightFormat::BF16 => quants.extend_from_slice(row),
        WeightFormat::Q8_0 => {
            for b in row.chunks_exact(34) {
                scales.extend_from_slice(&b[..2]);
                quants.extend(b[2..].iter().map(|q| q ^ 0x80));
            }
        }
        WeightFormat::Q4_0 => {
            for b in row.chunks_exact(18) {
                scales.extend_from_slice(&b[..2]);
                quants.extend_from_slice(&b[2..]);
            }
        }
        WeightFormat::Q4_1 => {
            for b in row.chunks_exact(20) {
                scales.extend_from_slice(&b[..4]);
                quants.extend_from_slice(&b[4..]);
            }
        }
    }
    quants.resize(quant_end, 0);
    scales.resize(scale_end, 0);
}

//! The layout of weights on the GPU: per shard one buffer of two planes, all quants of all
//! rows as runs of 16 bytes, then all scales; both are described beside the shader part of
//! each format. Rows are padded with zeros to whole groups of 32 weights. Formats stay what
//! they are: nothing is expanded and nothing is rounded.
//!
//! On GPUs rows follow one another, so that neighbouring lanes, which share a row, read
//! neighbouring groups. On CPUs' lanes, which have rows of their own, bundles of rows do.

use crate::dtype::WeightFormat;
use crate::kernels::Part;
use crate::quant::{self, codebook, k, q5};
use crate::shape::{BUNDLE, GROUP, ROW_ALIGN, round_up};

/// Planes start at a multiple of this many bytes, the largest offset alignment in WebGPU.
const ALIGN: usize = 256;

/// Which groups of 32 weights are neighbours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Order {
    /// Those of a row.
    Rows,
    /// Those of the same columns in [`BUNDLE`] rows. Of these the first of every four come
    /// first, then the second, and so on: `gemv_lanes` reads one of each four rows at a time. What is
    /// no whole vector of 16 bytes lies in words, of each the 32 rows' in their order, so that it
    /// reads those of four rows as a vector; then a half and a byte, if some are left.
    Bundles,
}

impl Order {
    /// Stored rows are a multiple of this.
    pub const fn align(self) -> usize {
        match self {
            Self::Rows => ROW_ALIGN,
            Self::Bundles => BUNDLE,
        }
    }

    /// The part that finds a group.
    pub const fn part(self) -> Part {
        match self {
            Self::Rows => Part::OrderRows,
            Self::Bundles => Part::OrderBundles,
        }
    }
}

/// Bytes of quants that a group of 32 weights takes.
const fn group_bytes(format: WeightFormat) -> usize {
    match format {
        WeightFormat::F32 => 128,
        WeightFormat::F16 | WeightFormat::BF16 => 64,
        WeightFormat::Q8_0 | WeightFormat::F8_E4M3 | WeightFormat::F8_E5M2 => 32,
        WeightFormat::Q2_K | WeightFormat::Q3_K => 8,
        WeightFormat::Q4_0
        | WeightFormat::Q4_1
        | WeightFormat::Q5_0
        | WeightFormat::Q5_1
        | WeightFormat::Q4_K
        | WeightFormat::Q5_K
        | WeightFormat::Q6_K
        | WeightFormat::IQ4_NL
        | WeightFormat::IQ4_XS
        | WeightFormat::MXFP4
        | WeightFormat::U4 => 16,
    }
}

/// How many groups of a row have their scales together, and the bytes of those.
const fn scale_unit(format: WeightFormat) -> (usize, usize) {
    match format {
        WeightFormat::F32
        | WeightFormat::F16
        | WeightFormat::BF16
        | WeightFormat::F8_E4M3
        | WeightFormat::F8_E5M2 => (1, 0),
        WeightFormat::MXFP4 => (1, 1),
        WeightFormat::Q8_0 | WeightFormat::Q4_0 | WeightFormat::IQ4_NL => (1, 2),
        WeightFormat::Q4_1 | WeightFormat::U4 => (1, 4),
        WeightFormat::Q5_0 => (1, 6),
        WeightFormat::Q5_1 => (1, 8),
        WeightFormat::IQ4_XS => (8, 12),
        WeightFormat::Q2_K | WeightFormat::Q4_K => (8, 20),
        WeightFormat::Q3_K | WeightFormat::Q5_K => (8, 52),
        WeightFormat::Q6_K => (8, 84),
    }
}

/// Bytes of scales that `groups` groups take, a whole number of units.
const fn scale_bytes(format: WeightFormat, groups: usize) -> usize {
    let (unit, bytes) = scale_unit(format);
    groups / unit * bytes
}

/// Where the planes of a shard lie in its buffer, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Planes {
    /// Storage format.
    pub format: WeightFormat,
    /// Order of the groups.
    pub order: Order,
    /// Stored rows, padding included.
    pub rows: usize,
    /// Groups of 32 weights in a row.
    pub groups: usize,
    /// Length of the plane of quants.
    pub quant_bytes: usize,
    /// Start of the plane of scales.
    pub scale_at: usize,
    /// Length of the plane of scales; at least 16, so that it can always be bound.
    pub scale_bytes: usize,
}

impl Planes {
    /// The layout of `rows` rows of `cols` weights.
    pub fn new(format: WeightFormat, order: Order, rows: usize, cols: usize) -> Self {
        let rows = round_up(rows, order.align());
        let groups = cols.div_ceil(GROUP);
        let quant_bytes = rows * groups * group_bytes(format);
        let scale_bytes = round_up(rows * scale_bytes(format, groups), 4).max(16);
        let scale_at = round_up(quant_bytes, ALIGN);
        Self { format, order, rows, groups, quant_bytes, scale_at, scale_bytes }
    }

    /// Size of the buffer.
    pub fn bytes(&self) -> usize {
        self.scale_at + round_up(self.scale_bytes, 16)
    }

    /// Bytes of quants and of scales that one row takes. Rows are packed in even numbers, so
    /// that two rows' scales always fill whole words.
    pub fn row_bytes(&self) -> (usize, usize) {
        (self.groups * group_bytes(self.format), scale_bytes(self.format, self.groups))
    }
}

/// Appends stored rows to both planes, as many as [`Order::align`] says or a multiple of that.
///
/// Each row holds whole blocks, or less; the planes grow by [`Planes::row_bytes`] for each.
pub fn pack<'a>(
    planes: &Planes,
    rows: impl IntoIterator<Item = &'a [u8]>,
    quants: &mut Vec<u8>,
    scales: &mut Vec<u8>,
) {
    let (quants_before, scales_before) = (quants.len(), scales.len());
    for row in rows {
        pack_row(planes, row, quants, scales);
    }
    if planes.order == Order::Bundles {
        bundle(&mut quants[quants_before..], planes.groups, group_bytes(planes.format));
        let (unit, bytes) = scale_unit(planes.format);
        bundle(&mut scales[scales_before..], planes.groups / unit, bytes);
    }
    if planes.format == WeightFormat::Q5_0 && planes.order == Order::Rows {
        // Words first, then what shares a word.
        for two in scales[scales_before..].chunks_exact_mut(12) {
            two[4..10].rotate_left(2);
        }
    }
}

/// Where the pieces of a group of `bytes` bytes begin, and their lengths.
fn pieces(bytes: usize) -> Vec<(usize, usize)> {
    if bytes.is_multiple_of(16) {
        return vec![(0, bytes)];
    }
    let words = (0..bytes / 4).map(|i| (4 * i, 4));
    let half = (bytes % 4 >= 2).then_some((bytes / 4 * 4, 2));
    let byte = (bytes % 2 == 1).then_some((bytes - 1, 1));
    words.chain(half).chain(byte).collect()
}

/// Calls `visit` for each piece of a bundle's rows, of `groups` groups of `bytes` bytes each, with where it lies in
/// [`Order::Rows`] and in [`Order::Bundles`], and its length.
fn for_each_place(groups: usize, bytes: usize, mut visit: impl FnMut(usize, usize, usize)) {
    for (at, length) in pieces(bytes) {
        for group in 0..groups {
            for place in 0..BUNDLE {
                let row = if length >= 16 { place % (BUNDLE / 4) * 4 + place / (BUNDLE / 4) } else { place };
                let to = (group * bytes + at) * BUNDLE + place * length;
                visit((row * groups + group) * bytes + at, to, length);
            }
        }
    }
}

/// Reorders rows of `groups` groups of `bytes` bytes from [`Order::Rows`] to [`Order::Bundles`].
fn bundle(rows: &mut [u8], groups: usize, bytes: usize) {
    let mut before = Vec::new();
    for bundle in rows.chunks_exact_mut((BUNDLE * groups * bytes).max(1)) {
        before.clear();
        before.extend_from_slice(bundle);
        for_each_place(groups, bytes, |from, to, length| {
            bundle[to..][..length].copy_from_slice(&before[from..][..length]);
        });
    }
}

/// Appends one stored row, padded to whole groups, to both planes.
fn pack_row(planes: &Planes, row: &[u8], quants: &mut Vec<u8>, scales: &mut Vec<u8>) {
    let (quant_bytes, scale_bytes) = planes.row_bytes();
    let (quant_end, scale_end) = (quants.len() + quant_bytes, scales.len() + scale_bytes);
    let format = planes.format;
    let blocks = row.chunks_exact(format.block_bytes());
    match format {
        WeightFormat::F32
        | WeightFormat::F16
        | WeightFormat::BF16
        | WeightFormat::F8_E4M3
        | WeightFormat::F8_E5M2 => quants.extend_from_slice(row),
        WeightFormat::Q8_0 => {
            for b in blocks {
                scales.extend_from_slice(&b[..2]);
                quants.extend(b[2..].iter().map(|q| q ^ 0x80));
            }
        }
        WeightFormat::Q4_0
        | WeightFormat::Q4_1
        | WeightFormat::IQ4_NL
        | WeightFormat::MXFP4
        | WeightFormat::U4 => {
            for b in blocks {
                let (scale, nibbles) = b.split_at(b.len() - 16);
                scales.extend_from_slice(scale);
                quants.extend_from_slice(nibbles);
            }
        }
        WeightFormat::Q5_0 | WeightFormat::Q5_1 => {
            let min = format == WeightFormat::Q5_1;
            for block in blocks.map(|b| q5::parse(b, min)) {
                scales.extend(spread(&block.q, 4, 1).next().unwrap_or_default());
                scales.extend(block.d.to_le_bytes());
                if min {
                    scales.extend(block.m.to_le_bytes());
                }
                quants.extend(nibbles(&block.q));
            }
        }
        WeightFormat::IQ4_XS => {
            for b in blocks {
                scales.extend([b[0], b[1], 0, 0]);
                scales.extend((0..8).map(|group| codebook::xs_scale(b, group) as u8));
                quants.extend_from_slice(&b[8..]);
            }
        }
        WeightFormat::Q2_K
        | WeightFormat::Q3_K
        | WeightFormat::Q4_K
        | WeightFormat::Q5_K
        | WeightFormat::Q6_K => {
            for b in blocks {
                pack_super(format, &k::parse(format, b), quants, scales);
            }
        }
    }
    quants.resize(quant_end, 0);
    scales.resize(scale_end, 0);
}

/// Appends a superblock of a K-quant.
fn pack_super(format: WeightFormat, block: &k::Super, quants: &mut Vec<u8>, scales: &mut Vec<u8>) {
    scales.extend(block.d.to_le_bytes());
    scales.extend(block.e.to_le_bytes());
    let signed = block.s.map(|s| s as u8);
    match format {
        WeightFormat::Q2_K => scales.extend(signed.iter().zip(&block.m).map(|(s, m)| s | m << 4)),
        // One scale and one minimum for both halves of a group.
        WeightFormat::Q4_K | WeightFormat::Q5_K => {
            scales.extend((0..8).flat_map(|group| [signed[2 * group], block.m[2 * group]]));
        }
        _ => scales.extend(signed),
    }
    for q in block.q.chunks_exact(32) {
        match format {
            WeightFormat::Q2_K => quants.extend(spread(q, 0, 2).flatten()),
            WeightFormat::Q3_K => quants.extend(threes(q).iter().take(2).flat_map(|word| word.to_le_bytes())),
            _ => quants.extend(nibbles(q)),
        }
        match format {
            WeightFormat::Q3_K => scales.extend(threes(q)[2].to_le_bytes()),
            WeightFormat::Q5_K => scales.extend(spread(q, 4, 1).flatten()),
            WeightFormat::Q6_K => scales.extend(spread(q, 4, 2).flatten()),
            _ => {}
        }
    }
}

/// The low four bits of 32 quants: byte j holds those of j and of j + 16.
fn nibbles(q: &[u8]) -> impl Iterator<Item = u8> {
    (0..16).map(|j| q[j] & 15 | (q[j + 16] & 15) << 4)
}

/// `bits` bits from bit `from` on of 32 quants, in `bits` words: of quants 4 i .. 4 i + 3 in the
/// four bytes of a word, so that a shift and a mask take them out together.
fn spread(q: &[u8], from: u32, bits: u32) -> impl Iterator<Item = [u8; 4]> {
    let quads = 8 / bits as usize;
    (0..bits as usize).map(move |word| {
        let mut bytes = [0; 4];
        for (k, q) in q[word * quads * 4..][..quads * 4].iter().enumerate() {
            bytes[k % 4] |= (q >> from & ((1 << bits) - 1)) << (k / 4 * bits as usize);
        }
        bytes
    })
}

/// 32 quants of three bits in three words: of each half ten quants and the lower two bits of the last in a word of
/// its own, five and the upper bit of the last in its half of the third word.
fn threes(q: &[u8]) -> [u32; 3] {
    let mut words = [0; 3];
    for (j, q) in q.iter().map(|q| u32::from(*q)).enumerate() {
        let (half, k) = (j / 16, j % 16);
        match k {
            0..10 => words[half] |= q << (3 * k),
            10..15 => words[2] |= q << (16 * half + 3 * (k - 10)),
            _ => {
                words[half] |= (q & 3) << 30;
                words[2] |= q >> 2 << (16 * half + 15);
            }
        }
    }
    words
}

/// Quant `j` of what [`threes`] made.
fn of_threes(words: [u32; 3], j: usize) -> u8 {
    let (half, k) = (j / 16, j % 16);
    let five = words[2] >> (16 * half);
    let q = match k {
        0..10 => words[half] >> (3 * k),
        10..15 => five >> (3 * (k - 10)),
        _ => words[half] >> 30 | five >> 13 & 4,
    };
    q as u8 & 7
}

/// The weights of a stored row, padding included: what [`pack`] made of it, read back. `quants` and
/// `scales` are those of all rows that lie together with it, from the last multiple of [`Order::align`] on.
pub fn unpack(planes: &Planes, row: usize, quants: &[u8], scales: &[u8]) -> Vec<f32> {
    let (mut quants, mut scales) = (quants.to_vec(), scales.to_vec());
    if planes.format == WeightFormat::Q5_0 && planes.order == Order::Rows {
        for two in scales.chunks_exact_mut(12) {
            two[4..10].rotate_right(2);
        }
    }
    let (quant_bytes, scale_bytes) = planes.row_bytes();
    let (unit, unit_bytes) = scale_unit(planes.format);
    if planes.order == Order::Bundles {
        unbundle(&mut quants, planes.groups, group_bytes(planes.format));
        unbundle(&mut scales, planes.groups / unit, unit_bytes);
    }
    let at = row % planes.order.align();
    let quants = &quants[at * quant_bytes..][..quant_bytes];
    let scales = &scales[at * scale_bytes..][..scale_bytes];
    let mut values = vec![0.0; planes.groups * GROUP];
    let unit_quants = unit * group_bytes(planes.format);
    for (i, out) in values.chunks_exact_mut(unit * GROUP).enumerate() {
        let scales = &scales[i * unit_bytes..][..unit_bytes];
        unpack_unit(planes.format, &quants[i * unit_quants..][..unit_quants], scales, out);
    }
    values
}

/// The inverse of [`bundle`].
fn unbundle(rows: &mut [u8], groups: usize, bytes: usize) {
    let before = rows.to_vec();
    let size = (BUNDLE * groups * bytes).max(1);
    for (bundle, before) in rows.chunks_exact_mut(size).zip(before.chunks_exact(size)) {
        for_each_place(groups, bytes, |to, from, length| {
            bundle[to..][..length].copy_from_slice(&before[from..][..length]);
        });
    }
}

/// Decodes the groups that have their scales together.
fn unpack_unit(format: WeightFormat, quants: &[u8], scales: &[u8], out: &mut [f32]) {
    let mut block = Vec::new();
    match format {
        WeightFormat::F32
        | WeightFormat::F16
        | WeightFormat::BF16
        | WeightFormat::F8_E4M3
        | WeightFormat::F8_E5M2 => block.extend_from_slice(quants),
        WeightFormat::Q8_0 => {
            block.extend_from_slice(scales);
            block.extend(quants.iter().map(|q| q ^ 0x80));
        }
        WeightFormat::Q4_0
        | WeightFormat::Q4_1
        | WeightFormat::IQ4_NL
        | WeightFormat::MXFP4
        | WeightFormat::U4 => {
            block.extend_from_slice(scales);
            block.extend_from_slice(quants);
        }
        WeightFormat::Q5_0 | WeightFormat::Q5_1 => {
            let bits = (0..32).fold(0u32, |bits, k| bits | u32::from(scales[k % 4] >> (k / 4) & 1) << k);
            block.extend_from_slice(&scales[4..]);
            block.extend(bits.to_le_bytes());
            block.extend_from_slice(quants);
        }
        WeightFormat::IQ4_XS => {
            let scale = |group: usize| (scales[4 + group] as i8 + 32) as u8;
            let high = (0..8).fold(0u16, |bits, group| bits | u16::from(scale(group) >> 4) << (2 * group));
            block.extend_from_slice(&scales[..2]);
            block.extend(high.to_le_bytes());
            block.extend((0..4).map(|i| scale(2 * i) & 15 | (scale(2 * i + 1) & 15) << 4));
            block.extend_from_slice(quants);
        }
        WeightFormat::Q2_K
        | WeightFormat::Q3_K
        | WeightFormat::Q4_K
        | WeightFormat::Q5_K
        | WeightFormat::Q6_K => {
            return k::values(format, &unpack_super(format, quants, scales), out);
        }
    }
    quant::decode(format, &block, out);
}

/// The inverse of [`pack_super`].
fn unpack_super(format: WeightFormat, quants: &[u8], scales: &[u8]) -> k::Super {
    let u16_at = |at: usize| u16::from_le_bytes([scales[at], scales[at + 1]]);
    let mut block = k::Super { d: u16_at(0), e: u16_at(2), q: [0; 256], s: [0; 16], m: [0; 16] };
    for i in 0..16 {
        (block.s[i], block.m[i]) = match format {
            WeightFormat::Q2_K => ((scales[4 + i] & 15) as i8, scales[4 + i] >> 4),
            WeightFormat::Q4_K | WeightFormat::Q5_K => (scales[4 + i / 2 * 2] as i8, scales[5 + i / 2 * 2]),
            _ => (scales[4 + i] as i8, 0),
        };
    }
    // Words of upper bits of a group.
    let words = match format {
        WeightFormat::Q3_K | WeightFormat::Q5_K => 1,
        WeightFormat::Q6_K => 2,
        _ => 0,
    };
    for (group, q) in block.q.chunks_exact_mut(GROUP).enumerate() {
        let quants = &quants[group * group_bytes(format)..][..group_bytes(format)];
        let upper = &scales[20..][group * words * 4..][..words * 4];
        if format == WeightFormat::Q3_K {
            let word = |bytes: &[u8]| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            let words = [word(quants), word(&quants[4..]), word(upper)];
            q.iter_mut().enumerate().for_each(|(j, q)| *q = of_threes(words, j));
            continue;
        }
        for (j, q) in q.iter_mut().enumerate() {
            *q = match (format, words) {
                (WeightFormat::Q2_K, _) => gathered(quants, 2, j),
                (_, 0) => nibble(quants, j),
                _ => nibble(quants, j) | gathered(upper, words as u32, j) << 4,
            };
        }
    }
    block
}

/// The low bits of quant `j`, of which a byte has those of two.
fn nibble(quants: &[u8], j: usize) -> u8 {
    quants[j % 16] >> (j / 16 * 4) & 15
}

/// Of quant `j` the bits that [`spread`] put into `bits` words.
fn gathered(words: &[u8], bits: u32, j: usize) -> u8 {
    let of_word = 32 / bits as usize;
    let (word, k) = (j / of_word, j % of_word);
    words[word * 4 + k % 4] >> (k / 4 * bits as usize) & ((1 << bits) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_reads_back() {
        for format in WeightFormat::ALL {
            let cols = 3 * format.block_len().max(32);
            let value = |i: usize| (i * 7919 % 1000) as f32 / 500.0 - 1.0 + (i % 97) as f32 * 0.01;
            let rows: Vec<_> = (0..40)
                .map(|r| quant::encode(format, &(0..cols).map(|i| value(r * cols + i)).collect::<Vec<_>>()))
                .collect();
            for order in [Order::Rows, Order::Bundles] {
                let planes = Planes::new(format, order, rows.len(), cols);
                let (mut quants, mut scales) = (Vec::new(), Vec::new());
                let stored = (0..planes.rows).map(|r| rows.get(r).map_or(&[][..], Vec::as_slice));
                pack(&planes, stored, &mut quants, &mut scales);
                let (quant_bytes, scale_bytes) = planes.row_bytes();
                for (r, row) in rows.iter().enumerate() {
                    let mut expected = vec![0.0; cols];
                    quant::decode(format, row, &mut expected);
                    let (first, align) = (r / order.align() * order.align(), order.align());
                    let quants = &quants[first * quant_bytes..][..align * quant_bytes];
                    let scales = &scales[first * scale_bytes..][..align * scale_bytes];
                    assert_eq!(
                        unpack(&planes, r, quants, scales)[..cols],
                        expected,
                        "{format} {order:?} {r}"
                    );
                }
            }
        }
    }

    #[test]
    fn bundles_hold_the_same_groups() {
        let planes = |order| Planes::new(WeightFormat::Q8_0, order, 40, 70);
        let pack = |planes: &Planes| {
            // Scale and weights of a group say which it is.
            let row =
                |r: usize| (0..3).flat_map(move |g| [[r as u8; 17], [g; 17]].concat()).collect::<Vec<u8>>();
            let rows: Vec<_> = (0..planes.rows).map(row).collect();
            let (mut quants, mut scales) = (Vec::new(), Vec::new());
            super::pack(planes, rows.iter().map(Vec::as_slice), &mut quants, &mut scales);
            (quants, scales)
        };
        let (rows, bundles) = (planes(Order::Rows), planes(Order::Bundles));
        assert_eq!((rows.rows, bundles.rows), (40, 64));
        let ((quants, scales), (bundled, bundled_scales)) = (pack(&rows), pack(&bundles));
        for row in 0..rows.rows {
            for group in 0..3 {
                let from = row * 3 + group;
                // As in shaders/parts/order_bundles.wgsl.
                let to = (row / 32 * 3 + group) * 32 + row % 4 * 8 + row % 32 / 4;
                assert_eq!(quants[from * 32..][..32], bundled[to * 32..][..32], "{row} {group}");
                let to = (row / 32 * 3 + group) * 32 + row % 32;
                assert_eq!(scales[from * 2..][..2], bundled_scales[to * 2..][..2], "{row} {group}");
            }
        }
    }
}

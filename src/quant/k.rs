//! The K-quants: superblocks of 256 weights in sub-blocks of 16 or 32, whose scales (and minima)
//! are small integers times an f16 of the superblock: w = d s (q - o) - e m.
//!
//! | format | q | o | sub-block | s | m |
//! |---|---|---|---|---|---|
//! | Q2_K | 2 bits | 0 | 16 | 4 bits | 4 bits |
//! | Q3_K | 3 bits | 4 | 16 | 6 bits - 32 | |
//! | Q4_K | 4 bits | 0 | 32 | 6 bits | 6 bits |
//! | Q5_K | 5 bits | 0 | 32 | 6 bits | 6 bits |
//! | Q6_K | 6 bits | 32 | 16 | 8 bits signed | |

use crate::dtype::WeightFormat;

/// A superblock in parts.
pub struct Super {
    /// Bits of d and e, f16.
    pub d: u16,
    /// As above; zero in formats without minima.
    pub e: u16,
    /// Quants, without the offset.
    pub q: [u8; 256],
    /// Scales of each 16 weights; where sub-blocks have 32, two are the same.
    pub s: [i8; 16],
    /// Minima, likewise.
    pub m: [u8; 16],
}

/// What a quant stands above zero.
pub const fn offset(format: WeightFormat) -> u8 {
    match format {
        WeightFormat::Q3_K => 4,
        WeightFormat::Q6_K => 32,
        _ => 0,
    }
}

/// Whether a sub-block has 32 weights, and its scale and minimum six bits.
const fn wide(format: WeightFormat) -> bool {
    matches!(format, WeightFormat::Q4_K | WeightFormat::Q5_K)
}

/// Bits of a quant.
const fn bits(format: WeightFormat) -> u32 {
    match format {
        WeightFormat::Q2_K => 2,
        WeightFormat::Q3_K => 3,
        WeightFormat::Q4_K => 4,
        WeightFormat::Q5_K => 5,
        _ => 6,
    }
}

/// Where the parts of a superblock lie in its bytes: low bits, high bits, scales, d, e.
struct Places {
    low: usize,
    high: usize,
    scales: usize,
    d: usize,
    e: Option<usize>,
}

const fn places(format: WeightFormat) -> Places {
    match format {
        WeightFormat::Q2_K => Places { low: 16, high: 0, scales: 0, d: 80, e: Some(82) },
        WeightFormat::Q3_K => Places { low: 32, high: 0, scales: 96, d: 108, e: None },
        WeightFormat::Q4_K => Places { low: 16, high: 0, scales: 4, d: 0, e: Some(2) },
        WeightFormat::Q5_K => Places { low: 48, high: 16, scales: 4, d: 0, e: Some(2) },
        _ => Places { low: 0, high: 128, scales: 192, d: 208, e: None },
    }
}

/// Where the bits of weight `k` lie: for its low and its high ones the byte, the shift and the
/// number of bits.
fn bit_places(format: WeightFormat, k: usize) -> [(usize, usize, u32); 2] {
    let (half, group, l) = (k / 128, k / 32, k % 32);
    match format {
        WeightFormat::Q2_K => [(half * 32 + l, group % 4 * 2, 2), (0, 0, 0)],
        WeightFormat::Q3_K => [(half * 32 + l, group % 4 * 2, 2), (l, group, 1)],
        WeightFormat::Q4_K => [(group / 2 * 32 + l, group % 2 * 4, 4), (0, 0, 0)],
        WeightFormat::Q5_K => [(group / 2 * 32 + l, group % 2 * 4, 4), (l, group, 1)],
        _ => [(half * 64 + group % 2 * 32 + l, group % 4 / 2 * 4, 4), (half * 32 + l, group % 4 * 2, 2)],
    }
}

/// Reads a superblock.
pub fn parse(format: WeightFormat, b: &[u8]) -> Super {
    let at = places(format);
    let u16_at = |at: usize| u16::from_le_bytes([b[at], b[at + 1]]);
    let mut block = Super { d: u16_at(at.d), e: at.e.map_or(0, u16_at), q: [0; 256], s: [0; 16], m: [0; 16] };
    for (k, q) in block.q.iter_mut().enumerate() {
        let [low, high] = bit_places(format, k);
        let take = |start: usize, (byte, shift, bits): (usize, usize, u32)| match bits {
            0 => 0,
            bits => b[start + byte] >> shift & ((1 << bits) - 1),
        };
        *q = take(at.low, low) | take(at.high, high) << low.2;
    }
    let scales = &b[at.scales..];
    for i in 0..16 {
        (block.s[i], block.m[i]) = match format {
            WeightFormat::Q2_K => ((scales[i] & 15) as i8, scales[i] >> 4),
            WeightFormat::Q3_K => {
                let low = scales[i % 8] >> (i / 8 * 4) & 15;
                let high = scales[8 + i % 4] >> (i / 4 * 2) & 3;
                ((low | high << 4) as i8 - 32, 0)
            }
            WeightFormat::Q4_K | WeightFormat::Q5_K => {
                let j = i / 2;
                if j < 4 {
                    ((scales[j] & 63) as i8, scales[j + 4] & 63)
                } else {
                    let (low, s, m) = (scales[j + 4], scales[j - 4] >> 6, scales[j] >> 6);
                    ((low & 15 | s << 4) as i8, low >> 4 | m << 4)
                }
            }
            _ => (scales[i] as i8, 0),
        };
    }
    block
}

/// Writes a superblock: the inverse of [`parse`].
fn write(format: WeightFormat, block: &Super) -> Vec<u8> {
    let at = places(format);
    let mut b = vec![0; format.block_bytes()];
    b[at.d..at.d + 2].copy_from_slice(&block.d.to_le_bytes());
    if let Some(e) = at.e {
        b[e..e + 2].copy_from_slice(&block.e.to_le_bytes());
    }
    for (k, q) in block.q.iter().enumerate() {
        let [low, high] = bit_places(format, k);
        b[at.low + low.0] |= (q & ((1 << low.2) - 1)) << low.1;
        if high.2 > 0 {
            b[at.high + high.0] |= q >> low.2 << high.1;
        }
    }
    let scales = &mut b[at.scales..];
    for i in 0..16 {
        let (s, m) = (block.s[i], block.m[i]);
        match format {
            WeightFormat::Q2_K => scales[i] = s as u8 | m << 4,
            WeightFormat::Q3_K => {
                let s = (s + 32) as u8;
                scales[i % 8] |= (s & 15) << (i / 8 * 4);
                scales[8 + i % 4] |= s >> 4 << (i / 4 * 2);
            }
            WeightFormat::Q4_K | WeightFormat::Q5_K if i % 2 == 0 => {
                let (j, s) = (i / 2, s as u8);
                if j < 4 {
                    scales[j] |= s;
                    scales[j + 4] |= m;
                } else {
                    scales[j + 4] |= s & 15 | (m & 15) << 4;
                    scales[j - 4] |= s >> 4 << 6;
                    scales[j] |= m >> 4 << 6;
                }
            }
            WeightFormat::Q4_K | WeightFormat::Q5_K => {}
            _ => scales[i] = s as u8,
        }
    }
    b
}

pub fn decode(format: WeightFormat, bytes: &[u8], out: &mut [f32]) {
    for (o, b) in out.chunks_exact_mut(256).zip(bytes.chunks_exact(format.block_bytes())) {
        values(format, &parse(format, b), o);
    }
}

/// The weights of a superblock.
pub fn values(format: WeightFormat, block: &Super, out: &mut [f32]) {
    let [d, e] = [block.d, block.e].map(|bits| half::f16::from_bits(bits).to_f32());
    for (k, w) in out.iter_mut().enumerate() {
        let (s, m) = (f32::from(block.s[k / 16]), f32::from(block.m[k / 16]));
        let q = f32::from(block.q[k]) - f32::from(offset(format));
        *w = d * s * q - e * m;
    }
}

/// The scale s and minimum m for which s (q - zero) - m is nearest to `x`, with q from 0 to `most`; no
/// minimum if there is a `zero`. Ranges somewhat smaller than that of `x` are tried, too, and each is
/// improved by least squares for the q that it gives.
fn fit(x: &[f32], most: f32, zero: f32) -> (f32, f32) {
    let (low, high) = x.iter().fold((0.0f32, 0.0f32), |(l, h), &v| (l.min(v), h.max(v)));
    let whole = match zero {
        0.0 => ((high - low) / most, -low),
        _ => (if high > -low { high } else { low } / -zero, 0.0),
    };
    let mut best = (f32::INFINITY, whole);
    for step in 0..8 {
        let share = 1.04 - 0.04 * step as f32;
        let (mut s, mut m) = (whole.0 * share, whole.1 * share);
        for _ in 0..2 {
            let inverse = if s == 0.0 { 0.0 } else { 1.0 / s };
            let quant = |v: f32| ((v + m) * inverse + zero).round().clamp(0.0, most) - zero;
            let (mut error, mut n) = (0.0, 0.0f32);
            let (mut sum_q, mut sum_x, mut sum_qq, mut sum_qx) = (0.0, 0.0, 0.0, 0.0);
            for &v in x {
                let q = quant(v);
                error += (s * q - m - v).powi(2);
                n += 1.0;
                sum_q += q;
                sum_x += v;
                sum_qq += q * q;
                sum_qx += q * v;
            }
            if error < best.0 {
                best = (error, (s, m));
            }
            let spread = n * sum_qq - sum_q * sum_q;
            let slope = (n * sum_qx - sum_q * sum_x) / spread;
            let level = (slope * sum_q - sum_x) / n;
            (s, m) = if zero == 0.0 && spread > 0.0 && level > 0.0 {
                (slope, level)
            } else if sum_qq > 0.0 {
                (sum_qx / sum_qq, 0.0)
            } else {
                break;
            };
        }
    }
    best.1
}

/// Encodes: each sub-block gets the scale and the minimum that suit it best, rounded.
pub fn encode(format: WeightFormat, values: &[f32]) -> Vec<u8> {
    let most = f32::from((1u8 << bits(format)) - 1);
    let (steps, least) = match format {
        WeightFormat::Q2_K => (15.0, 0.0),
        WeightFormat::Q3_K => (31.0, -32.0),
        WeightFormat::Q4_K | WeightFormat::Q5_K => (63.0, 0.0),
        _ => (127.0, -128.0),
    };
    let zero = f32::from(offset(format));
    let size = if wide(format) { 32 } else { 16 };
    let divide = |a: f32, b: f32| if b == 0.0 { 0.0 } else { a / b };
    let f16 = |v: f32| half::f16::from_f32(v);
    let mut bytes = Vec::new();
    for x in values.chunks_exact(256) {
        // Scale and minimum of each sub-block as they should be.
        let wanted: Vec<(f32, f32)> = x.chunks_exact(size).map(|x| fit(x, most, zero)).collect();
        let largest = |of: fn(&(f32, f32)) -> f32| wanted.iter().map(|w| of(w).abs()).fold(0.0, f32::max);
        let d = f16(largest(|w| w.0) / steps);
        let e = f16(largest(|w| w.1) / steps);
        let mut block = Super { d: d.to_bits(), e: e.to_bits(), q: [0; 256], s: [0; 16], m: [0; 16] };
        for i in 0..16 {
            let (scale, min) = wanted[i * 16 / size];
            let s = divide(scale, d.to_f32()).round().clamp(least, steps);
            let m = divide(min, e.to_f32()).round().clamp(0.0, steps);
            (block.s[i], block.m[i]) = (s as i8, m as u8);
            let span = i * 16..i * 16 + 16;
            for (q, x) in block.q[span.clone()].iter_mut().zip(&x[span]) {
                let exact = divide(x + e.to_f32() * m, d.to_f32() * s) + zero;
                *q = exact.round().clamp(0.0, most) as u8;
            }
        }
        bytes.extend(write(format, &block));
    }
    bytes
}

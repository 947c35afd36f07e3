//! Q5_0 and Q5_1: blocks of 32 weights. As Q4_0 and Q4_1, with a fifth bit for each weight: bit j
//! of a u32 that follows the scale and the minimum. Q5_0: w = d (q - 16); Q5_1: w = d q + m.

use super::f16_at;

/// A block in parts.
pub struct Block {
    /// Bits of the f16 scale.
    pub d: u16,
    /// Bits of the f16 minimum; zero in Q5_0.
    pub m: u16,
    /// Quants of five bits.
    pub q: [u8; 32],
}

/// Reads a block of Q5_1 if `min`, else of Q5_0.
pub fn parse(b: &[u8], min: bool) -> Block {
    let at = if min { 4 } else { 2 };
    let high = u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
    let mut q = [0; 32];
    for (j, &byte) in b[at + 4..at + 20].iter().enumerate() {
        let fifth = |k: usize| ((high >> k & 1) as u8) << 4;
        q[j] = byte & 15 | fifth(j);
        q[j + 16] = byte >> 4 | fifth(j + 16);
    }
    let m = if min { u16::from_le_bytes([b[2], b[3]]) } else { 0 };
    Block { d: u16::from_le_bytes([b[0], b[1]]), m, q }
}

pub fn decode(bytes: &[u8], out: &mut [f32], min: bool) {
    for (o, b) in out.chunks_exact_mut(32).zip(bytes.chunks_exact(if min { 24 } else { 22 })) {
        let (d, m) = (f16_at(b, 0), if min { f16_at(b, 2) } else { 0.0 });
        for (w, q) in o.iter_mut().zip(parse(b, min).q) {
            *w = if min { d * f32::from(q) + m } else { d * (f32::from(q) - 16.0) };
        }
    }
}

pub fn encode(values: &[f32], min: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    for x in values.chunks_exact(32) {
        let (low, high) = x.iter().fold((f32::MAX, f32::MIN), |(l, h), &v| (l.min(v), h.max(v)));
        let extreme = if high > -low { high } else { low };
        let (d, zero) = if min { ((high - low) / 31.0, low) } else { (extreme / -16.0, 0.0) };
        let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
        let offset = if min { 0.0 } else { 16.0 };
        let q: Vec<u8> =
            x.iter().map(|v| ((v - zero) * inverse + offset).round().clamp(0.0, 31.0) as u8).collect();
        bytes.extend(half::f16::from_f32(d).to_le_bytes());
        if min {
            bytes.extend(half::f16::from_f32(low).to_le_bytes());
        }
        let fifth = q.iter().enumerate().fold(0u32, |bits, (j, q)| bits | u32::from(q >> 4) << j);
        bytes.extend(fifth.to_le_bytes());
        bytes.extend((0..16).map(|j| q[j] & 15 | q[j + 16] << 4));
    }
    bytes
}

//! Q4_1: blocks of 32 weights, f16 scale d, f16 minimum m, then 16 bytes of nibbles in the
//! order of Q4_0; w = d q + m.

use super::f16_at;

const BYTES: usize = 20;

pub fn decode(bytes: &[u8], out: &mut [f32]) {
    for (o, b) in out.chunks_exact_mut(32).zip(bytes.chunks_exact(BYTES)) {
        let (d, m) = (f16_at(b, 0), f16_at(b, 2));
        for (j, &byte) in b[4..].iter().enumerate() {
            o[j] = d * f32::from(byte & 15) + m;
            o[j + 16] = d * f32::from(byte >> 4) + m;
        }
    }
}

pub fn encode(values: &[f32]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(values.len() / 32 * BYTES);
    for x in values.chunks_exact(32) {
        let min = x.iter().copied().fold(f32::INFINITY, f32::min);
        let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let d = (max - min) / 15.0;
        let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
        let quant = |v: f32| ((v - min) * inverse).round().clamp(0.0, 15.0) as u8;
        bytes.extend(half::f16::from_f32(d).to_le_bytes());
        bytes.extend(half::f16::from_f32(min).to_le_bytes());
        bytes.extend((0..16).map(|j| quant(x[j]) | quant(x[j + 16]) << 4));
    }
    bytes
}

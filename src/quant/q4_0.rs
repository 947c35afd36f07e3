//! Q4_0: blocks of 32 weights, f16 scale d, then 16 bytes; byte j holds weight j in its low
//! and weight j + 16 in its high nibble; w = d (q - 8).

use super::f16_at;

const BYTES: usize = 18;

pub fn decode(bytes: &[u8], out: &mut [f32]) {
    for (o, b) in out.chunks_exact_mut(32).zip(bytes.chunks_exact(BYTES)) {
        let d = f16_at(b, 0);
        for (j, &byte) in b[2..].iter().enumerate() {
            o[j] = d * (f32::from(byte & 15) - 8.0);
            o[j + 16] = d * (f32::from(byte >> 4) - 8.0);
        }
    }
}

pub fn encode(values: &[f32]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(values.len() / 32 * BYTES);
    for x in values.chunks_exact(32) {
        // The value of largest magnitude maps to -8, the end of the range that has one step more.
        let extreme = x.iter().fold(0.0f32, |m, &v| if v.abs() > m.abs() { v } else { m });
        let d = extreme / -8.0;
        let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
        let quant = |v: f32| (v * inverse + 8.0).round().clamp(0.0, 15.0) as u8;
        bytes.extend(half::f16::from_f32(d).to_le_bytes());
        bytes.extend((0..16).map(|j| quant(x[j]) | quant(x[j + 16]) << 4));
    }
    bytes
}

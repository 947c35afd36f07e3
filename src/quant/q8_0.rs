//! Q8_0: blocks of 32 weights, f16 scale d, then 32 signed bytes q; w = d q.

use super::f16_at;

const BYTES: usize = 34;

pub fn decode(bytes: &[u8], out: &mut [f32]) {
    for (o, b) in out.chunks_exact_mut(32).zip(bytes.chunks_exact(BYTES)) {
        let d = f16_at(b, 0);
        for (w, &q) in o.iter_mut().zip(&b[2..]) {
            *w = d * f32::from(q as i8);
        }
    }
}

pub fn encode(values: &[f32]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(values.len() / 32 * BYTES);
    for x in values.chunks_exact(32) {
        let max = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let d = max / 127.0;
        let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
        bytes.extend(half::f16::from_f32(d).to_le_bytes());
        bytes.extend(x.iter().map(|v| (v * inverse).round() as i8 as u8));
    }
    bytes
}

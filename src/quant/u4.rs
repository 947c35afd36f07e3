//! U4: blocks of 32 weights, f16 scale d, f16 zero z (a whole number), then 16 bytes of nibbles q in
//! the order of Q4_0; w = d (q - z). What AWQ (Lin et al. 2023) and GPTQ (Frantar et al. 2022)
//! checkpoints hold in groups of 32 weights or more, with the group's scale in each block.

use super::f16_at;

const BYTES: usize = 20;

pub fn decode(bytes: &[u8], out: &mut [f32]) {
    for (o, b) in out.chunks_exact_mut(32).zip(bytes.chunks_exact(BYTES)) {
        let (d, z) = (f16_at(b, 0), f16_at(b, 2));
        for (j, &byte) in b[4..].iter().enumerate() {
            o[j] = d * (f32::from(byte & 15) - z);
            o[j + 16] = d * (f32::from(byte >> 4) - z);
        }
    }
}

pub fn encode(values: &[f32]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(values.len() / 32 * BYTES);
    for x in values.chunks_exact(32) {
        // The range holds zero, so that there is a zero among the steps.
        let min = x.iter().copied().fold(0.0, f32::min);
        let max = x.iter().copied().fold(0.0, f32::max);
        let d = (max - min) / 15.0;
        let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
        let zero = (-min * inverse).round();
        let quant = |v: f32| ((v * inverse).round() + zero).clamp(0.0, 15.0) as u8;
        bytes.extend(block(half::f16::from_f32(d), zero as u8, |j| quant(x[j])));
    }
    bytes
}

/// The block with these quants.
pub fn block(d: half::f16, zero: u8, quant: impl Fn(usize) -> u8) -> [u8; BYTES] {
    let mut bytes = [0; BYTES];
    bytes[..2].copy_from_slice(&d.to_le_bytes());
    bytes[2..4].copy_from_slice(&half::f16::from(zero).to_le_bytes());
    bytes[4..].iter_mut().enumerate().for_each(|(j, byte)| *byte = quant(j) | quant(j + 16) << 4);
    bytes
}

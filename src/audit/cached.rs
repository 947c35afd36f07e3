//! Keys and values as pages hold them, decoded; the layouts are those of `shaders/parts/kv_*.wgsl`.

use half::f16;

use crate::dtype::KvFormat;
use crate::kernels::PAGE;

/// The `stored` values that a head has at position `j` of a page, from the head's share of the page.
pub fn values(kv: KvFormat, share: &[u8], stored: usize, j: usize) -> Vec<f32> {
    let half_at = |at: usize| f16::from_le_bytes([share[at], share[at + 1]]).to_f32();
    // Behind the quants of all positions a word for every two scales.
    let scale = |quants: usize, i: usize| half_at(PAGE * quants + j * stored.div_ceil(64) * 4 + i / 32 * 2);
    let value = |i: usize| match kv {
        KvFormat::F32 => {
            let at = (j * stored + i) * 4;
            f32::from_le_bytes([share[at], share[at + 1], share[at + 2], share[at + 3]])
        }
        KvFormat::F16 => half_at((j * stored + i) * 2),
        KvFormat::Q8_0 => scale(stored, i) * (f32::from(share[j * stored + i]) - 128.0),
        KvFormat::Q4_0 => {
            // Eight values to a word, the first four in the low nibbles.
            let byte = share[j * stored / 2 + i / 8 * 4 + i % 4];
            scale(stored / 2, i) * (f32::from(byte >> (i % 8 / 4 * 4) & 15) - 8.0)
        }
    };
    (0..stored).map(value).collect()
}

/// How far `head`, as it is cached, may be from what was to be cached.
pub fn slack(kv: KvFormat, head: &[f32], i: usize) -> f64 {
    let value = f64::from(head[i].abs());
    let block = &head[i / 32 * 32..(i / 32 * 32 + 32).min(head.len())];
    let most = f64::from(block.iter().fold(0.0f32, |most, v| most.max(v.abs())));
    match kv {
        KvFormat::F32 => 0.0,
        // Drivers may round to either side, and take what is below 2^-14 for zero.
        KvFormat::F16 => value / 1024.0 + 6.2e-5,
        // Half a step, and the rounding of the scale.
        KvFormat::Q8_0 => most / 127.0 * 0.7 + most / 1024.0,
        // The far end of the range has a step less.
        KvFormat::Q4_0 => most / 8.0 * 1.1 + most / 1024.0,
    }
}

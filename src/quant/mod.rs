//! Block formats on the host: decoding and encoding, written as the formats are defined.
//! This is the truth that kernels are tested against; the layout on the GPU is
//! `kernels::pack`'s. Sources: IEEE 754, and GGML's block definitions (`ggml-common.h`).

mod floats;
mod q4_0;
mod q4_1;
mod q8_0;

use crate::dtype::WeightFormat;

/// Decodes whole blocks into `out`; takes as many as both slices hold.
pub fn decode(format: WeightFormat, bytes: &[u8], out: &mut [f32]) {
    match format {
        WeightFormat::F32 => floats::decode_f32(bytes, out),
        WeightFormat::F16 => floats::decode_f16(bytes, out),
        WeightFormat::BF16 => floats::decode_bf16(bytes, out),
        WeightFormat::Q8_0 => q8_0::decode(bytes, out),
        WeightFormat::Q4_0 => q4_0::decode(bytes, out),
        WeightFormat::Q4_1 => q4_1::decode(bytes, out),
    }
}

/// Encodes `values` (a whole number of blocks) by round-to-nearest.
pub fn encode(format: WeightFormat, values: &[f32]) -> Vec<u8> {
    match format {
        WeightFormat::F32 => floats::encode_f32(values),
        WeightFormat::F16 => floats::encode_f16(values),
        WeightFormat::BF16 => floats::encode_bf16(values),
        WeightFormat::Q8_0 => q8_0::encode(values),
        WeightFormat::Q4_0 => q4_0::encode(values),
        WeightFormat::Q4_1 => q4_1::encode(values),
    }
}

/// Bytes that `len` weights of one row take in `format`; `None` if they are not whole blocks.
pub fn row_bytes(format: WeightFormat, len: usize) -> Option<usize> {
    len.is_multiple_of(format.block_len()).then(|| len / format.block_len() * format.block_bytes())
}

/// The f16 at the start of `bytes`, as f32.
fn f16_at(bytes: &[u8], at: usize) -> f32 {
    half::f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values between -4 and 4 with an outlier, from a small congruential generator.
    fn values(n: usize) -> Vec<f32> {
        let mut state = 12345u32;
        let mut v: Vec<f32> = (0..n)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 21) as f32 - 4.0
            })
            .collect();
        v[n / 2] = 17.5;
        v
    }

    #[test]
    fn a_round_trip_stays_within_half_a_step() {
        for format in WeightFormat::ALL {
            let x = values(256);
            let bytes = encode(format, &x);
            assert_eq!(Some(bytes.len()), row_bytes(format, x.len()), "{format}");
            let mut y = vec![0.0; x.len()];
            decode(format, &bytes, &mut y);
            for (block, (a, b)) in x.chunks(32).zip(y.chunks(32)).enumerate() {
                let max = a.iter().fold(0.0f32, |m, v| m.max(v.abs()));
                let step = match format {
                    WeightFormat::F32 => 0.0,
                    WeightFormat::F16 => max / 1024.0,
                    WeightFormat::BF16 => max / 128.0,
                    WeightFormat::Q8_0 => max / 127.0,
                    WeightFormat::Q4_0 => max / 4.0,
                    WeightFormat::Q4_1 => max / 7.0,
                };
                for (u, v) in a.iter().zip(b) {
                    assert!((u - v).abs() <= step * 0.51, "{format} block {block}: {u} became {v}");
                }
            }
        }
    }

    #[test]
    fn rows_that_are_no_whole_blocks_have_no_size() {
        assert_eq!(row_bytes(WeightFormat::Q4_0, 33), None);
        assert_eq!(row_bytes(WeightFormat::F16, 33), Some(66));
    }
}

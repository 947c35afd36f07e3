//! Block formats on the host: decoding and encoding, written as the formats are defined.
//! This is the truth that kernels are tested against; the layout on the GPU is
//! `kernels::pack`'s. Sources: IEEE 754, and GGML's block definitions (`ggml-common.h`).

pub(crate) mod codebook;
mod floats;
pub(crate) mod k;
mod q4_0;
mod q4_1;
pub(crate) mod q5;
mod q8_0;
pub(crate) mod u4;

use crate::dtype::WeightFormat;

/// Decodes whole blocks into `out`; takes as many as both slices hold.
pub fn decode(format: WeightFormat, bytes: &[u8], out: &mut [f32]) {
    match format {
        WeightFormat::F32 => floats::decode_f32(bytes, out),
        WeightFormat::F16 => floats::decode_f16(bytes, out),
        WeightFormat::BF16 => floats::decode_bf16(bytes, out),
        WeightFormat::F8_E4M3 => floats::decode_f8_e4m3(bytes, out),
        WeightFormat::F8_E5M2 => floats::decode_f8_e5m2(bytes, out),
        WeightFormat::Q8_0 => q8_0::decode(bytes, out),
        WeightFormat::Q4_0 => q4_0::decode(bytes, out),
        WeightFormat::Q4_1 => q4_1::decode(bytes, out),
        WeightFormat::Q5_0 => q5::decode(bytes, out, false),
        WeightFormat::Q5_1 => q5::decode(bytes, out, true),
        WeightFormat::Q2_K
        | WeightFormat::Q3_K
        | WeightFormat::Q4_K
        | WeightFormat::Q5_K
        | WeightFormat::Q6_K => k::decode(format, bytes, out),
        WeightFormat::IQ4_NL => codebook::decode_iq4_nl(bytes, out),
        WeightFormat::IQ4_XS => codebook::decode_iq4_xs(bytes, out),
        WeightFormat::MXFP4 => codebook::decode_mxfp4(bytes, out),
        WeightFormat::U4 => u4::decode(bytes, out),
    }
}

/// Encodes `values` (a whole number of blocks) by round-to-nearest.
pub fn encode(format: WeightFormat, values: &[f32]) -> Vec<u8> {
    match format {
        WeightFormat::F32 => floats::encode_f32(values),
        WeightFormat::F16 => floats::encode_f16(values),
        WeightFormat::BF16 => floats::encode_bf16(values),
        WeightFormat::F8_E4M3 => floats::encode_f8_e4m3(values),
        WeightFormat::F8_E5M2 => floats::encode_f8_e5m2(values),
        WeightFormat::Q8_0 => q8_0::encode(values),
        WeightFormat::Q4_0 => q4_0::encode(values),
        WeightFormat::Q4_1 => q4_1::encode(values),
        WeightFormat::Q5_0 => q5::encode(values, false),
        WeightFormat::Q5_1 => q5::encode(values, true),
        WeightFormat::Q2_K
        | WeightFormat::Q3_K
        | WeightFormat::Q4_K
        | WeightFormat::Q5_K
        | WeightFormat::Q6_K => k::encode(format, values),
        WeightFormat::IQ4_NL => codebook::encode_iq4_nl(values),
        WeightFormat::IQ4_XS => codebook::encode_iq4_xs(values),
        WeightFormat::MXFP4 => codebook::encode_mxfp4(values),
        WeightFormat::U4 => u4::encode(values),
    }
}

/// The first block of a row whose scale or minimum is not finite, if there is one: weights of it
/// would be no numbers. Of plain floats only E4M3 is looked at, whose decoder on devices knows no
/// NaN.
pub fn bad_block(format: WeightFormat, row: &[u8]) -> Option<usize> {
    use WeightFormat::{
        BF16, F16, F32, IQ4_NL, IQ4_XS, MXFP4, Q2_K, Q3_K, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K,
    };
    use WeightFormat::{F8_E4M3, F8_E5M2, Q6_K, Q8_0, U4};
    // Where a block has halves that scale it.
    let halves: &[usize] = match format {
        F32 | F16 | BF16 | F8_E5M2 => return None,
        F8_E4M3 => return row.iter().position(|b| b & 0x7f == 0x7f),
        // An exponent; six times a larger one is beyond all floats.
        MXFP4 => return row.chunks_exact(17).position(|b| b[0] > 252),
        Q8_0 | Q4_0 | Q5_0 | IQ4_NL | IQ4_XS => &[0],
        Q4_1 | Q5_1 | Q4_K | Q5_K | U4 => &[0, 2],
        Q2_K => &[80, 82],
        Q3_K => &[108],
        Q6_K => &[208],
    };
    let finite = |b: &[u8], at: usize| b[at + 1] & 0x7c != 0x7c;
    row.chunks_exact(format.block_bytes()).position(|b| halves.iter().any(|&at| !finite(b, at)))
}

/// The format for rows of `len` weights where `wanted` is wanted: one with smaller blocks and about
/// as many bits, as files in the field have it, where they are no whole blocks of that.
pub fn fitting(wanted: WeightFormat, len: usize) -> WeightFormat {
    use WeightFormat::{F16, IQ4_NL, IQ4_XS, Q2_K, Q3_K, Q4_0, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0};
    let smaller = match wanted {
        Q2_K | Q3_K => Q4_0,
        IQ4_XS => IQ4_NL,
        Q4_K => Q5_0,
        Q5_K => Q5_1,
        Q6_K => Q8_0,
        other => other,
    };
    let fits = |format: &WeightFormat| row_bytes(*format, len).is_some();
    [wanted, smaller].into_iter().find(fits).unwrap_or(F16)
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
        use WeightFormat::{BF16, F8_E4M3, F8_E5M2, F16, F32, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, U4};
        for format in [F32, F16, BF16, F8_E4M3, F8_E5M2, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, U4] {
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
                    WeightFormat::F8_E4M3 => max / 8.0,
                    WeightFormat::F8_E5M2 => max / 4.0,
                    WeightFormat::Q8_0 => max / 127.0,
                    WeightFormat::Q4_0 => max / 4.0,
                    WeightFormat::Q4_1 | WeightFormat::U4 => max / 7.0,
                    WeightFormat::Q5_0 => max / 8.0,
                    _ => max / 15.0,
                };
                for (u, v) in a.iter().zip(b) {
                    assert!((u - v).abs() <= step * 0.51, "{format} block {block}: {u} became {v}");
                }
            }
        }
    }

    /// Values of the definitions (OCP 8-bit Floating Point Specification 1.0).
    #[test]
    fn bytes_are_the_floats_that_they_stand_for() {
        let cases = [
            (WeightFormat::F8_E4M3, 0x7e, 448.0),
            (WeightFormat::F8_E4M3, 0x08, 0.015625),
            (WeightFormat::F8_E4M3, 0x87, -0.013671875),
            (WeightFormat::F8_E4M3, 0x01, 0.001953125),
            (WeightFormat::F8_E5M2, 0x7b, 57344.0),
            (WeightFormat::F8_E5M2, 0xbc, -1.0),
            (WeightFormat::F8_E5M2, 0x01, 2f32.powi(-16)),
        ];
        for (format, byte, value) in cases {
            let mut found = [0.0];
            decode(format, &[byte], &mut found);
            assert_eq!((found[0], encode(format, &[value])), (value, vec![byte]), "{format} {byte:#x}");
        }
        for format in [WeightFormat::F8_E4M3, WeightFormat::F8_E5M2] {
            // Too large is the largest, and every number comes back.
            let largest = encode(format, &[1e9, -1e9]);
            for byte in 0..=255u8 {
                let mut value = [0.0];
                decode(format, &[byte], &mut value);
                if value[0].is_finite() && byte != 0x80 {
                    assert_eq!(encode(format, &value), [byte], "{format} {byte:#x}");
                    assert!(byte & 0x7f <= largest[0] && largest[1] == largest[0] | 0x80);
                }
            }
        }
    }

    /// Where scales are rounded, too, or steps are unequal: the error as a share of the values.
    #[test]
    fn a_round_trip_stays_near() {
        use WeightFormat::{IQ4_NL, IQ4_XS, MXFP4, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K};
        let limits = [
            (Q2_K, 0.32),
            (Q3_K, 0.2),
            (Q4_K, 0.09),
            (Q5_K, 0.045),
            (Q6_K, 0.025),
            (IQ4_NL, 0.12),
            (IQ4_XS, 0.12),
            (MXFP4, 0.2),
        ];
        for (format, limit) in limits {
            let x = values(512);
            let mut y = vec![0.0; x.len()];
            decode(format, &encode(format, &x), &mut y);
            let squares = |v: &mut dyn Iterator<Item = f32>| v.map(|v| v * v).sum::<f32>().sqrt();
            let share = squares(&mut x.iter().zip(&y).map(|(a, b)| a - b)) / squares(&mut x.iter().copied());
            assert!(share < limit && share > limit / 4.0, "{format}: {share}");
            let mut zeros = vec![1.0; 512];
            decode(format, &encode(format, &[0.0; 512]), &mut zeros);
            assert!(zeros.iter().all(|v| *v == 0.0), "{format}");
        }
    }

    #[test]
    fn scales_that_are_no_numbers_are_found() {
        for format in WeightFormat::ALL.into_iter().filter(|f| f.block_len() > 1) {
            let good = encode(format, &values(512));
            assert_eq!(bad_block(format, &good), None, "{format}");
            let (size, last) = (format.block_bytes(), 512 / format.block_len() - 1);
            let found = (0..size).filter(|&at| {
                let mut bytes = good.clone();
                bytes[last * size + at] = 0xff;
                let mut decoded = vec![0.0; 512];
                decode(format, &bytes, &mut decoded);
                // Just what makes a weight of the block infinite or no number.
                let bad = decoded.iter().any(|w| !w.is_finite());
                assert!(!bad || bad_block(format, &bytes) == Some(last), "{format}: byte {at}");
                bad || bad_block(format, &bytes) == Some(last)
            });
            assert!((1..=2).contains(&found.count()), "{format}");
        }
    }

    #[test]
    fn bytes_that_are_no_numbers_are_found() {
        let find = |row: &[u8]| bad_block(WeightFormat::F8_E4M3, row);
        assert_eq!((find(&[0x7e, 0xfe, 0]), find(&[0, 0x7f]), find(&[0xff])), (None, Some(1), Some(0)));
    }

    /// The largest code stands for 6.
    #[test]
    fn mxfp4_scales_whose_weights_are_beyond_floats_are_found() {
        let block = |exponent: u8| [&[exponent][..], &[0x77; 16]].concat();
        for (exponent, bad) in [(0, false), (252, false), (253, true), (254, true), (255, true)] {
            let mut values = [0.0; 32];
            decode(WeightFormat::MXFP4, &block(exponent), &mut values);
            assert_eq!(values.iter().any(|v| !v.is_finite()), bad, "{exponent}");
            assert_eq!(bad_block(WeightFormat::MXFP4, &block(exponent)).is_some(), bad, "{exponent}");
        }
    }

    #[test]
    fn formats_fit_rows() {
        use WeightFormat::{F16, IQ4_NL, IQ4_XS, Q4_0, Q4_K, Q5_0};
        let cases = [(Q4_K, 512, Q4_K), (Q4_K, 576, Q5_0), (IQ4_XS, 96, IQ4_NL), (Q4_0, 40, F16)];
        for (wanted, len, expected) in cases {
            assert_eq!(fitting(wanted, len), expected, "{wanted} {len}");
        }
    }

    #[test]
    fn rows_that_are_no_whole_blocks_have_no_size() {
        assert_eq!(row_bytes(WeightFormat::Q4_0, 33), None);
        assert_eq!(row_bytes(WeightFormat::F16, 33), Some(66));
    }
}

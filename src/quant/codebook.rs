//! Formats whose quants are places in a table: IQ4_NL and IQ4_XS with GGML's sixteen unequal
//! steps, and MXFP4 with the values of a four-bit float (OCP Microscaling Formats 1.0, E2M1 with
//! a power of two for each 32).
//!
//! IQ4_NL: f16 d, 16 bytes of nibbles as in Q4_0. IQ4_XS: superblocks of 256: f16 d, the upper two
//! bits of eight scales in a u16, the lower four in four bytes, then nibbles as in IQ4_NL for each
//! 32 weights; w = d (s - 32) v. MXFP4: a byte e, then nibbles; w = 2^(e - 127) v.

use super::f16_at;

/// The values of IQ4_NL and IQ4_XS.
pub const IQ4: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// The values of MXFP4, doubled.
pub const E2M1: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// Half of 2^(e - 127), for values that are doubled.
pub fn e8m0_half(e: u8) -> f32 {
    // Below 2^-126 a float has no exponent of its own.
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { (u32::from(e) - 1) << 23 })
}

/// Scale of 32 weights in a superblock of IQ4_XS, without its d.
pub fn xs_scale(b: &[u8], group: usize) -> i8 {
    let high = u16::from_le_bytes([b[2], b[3]]) >> (2 * group) & 3;
    let low = b[4 + group / 2] >> (group % 2 * 4) & 15;
    (low | (high as u8) << 4) as i8 - 32
}

fn values(nibbles: &[u8], table: &[i8; 16], scale: f32, out: &mut [f32]) {
    for (j, byte) in nibbles.iter().enumerate() {
        out[j] = scale * f32::from(table[usize::from(byte & 15)]);
        out[j + 16] = scale * f32::from(table[usize::from(byte >> 4)]);
    }
}

pub fn decode_iq4_nl(bytes: &[u8], out: &mut [f32]) {
    for (o, b) in out.chunks_exact_mut(32).zip(bytes.chunks_exact(18)) {
        values(&b[2..], &IQ4, f16_at(b, 0), o);
    }
}

pub fn decode_iq4_xs(bytes: &[u8], out: &mut [f32]) {
    for (o, b) in out.chunks_exact_mut(256).zip(bytes.chunks_exact(136)) {
        for (group, o) in o.chunks_exact_mut(32).enumerate() {
            let scale = f16_at(b, 0) * f32::from(xs_scale(b, group));
            values(&b[8 + group * 16..][..16], &IQ4, scale, o);
        }
    }
}

pub fn decode_mxfp4(bytes: &[u8], out: &mut [f32]) {
    for (o, b) in out.chunks_exact_mut(32).zip(bytes.chunks_exact(17)) {
        values(&b[1..], &E2M1, e8m0_half(b[0]), o);
    }
}

/// Sixteen bytes of nibbles: places of the nearest values.
fn nibbles(x: &[f32], table: &[i8; 16], scale: f32) -> impl Iterator<Item = u8> {
    let nearest = move |v: f32| {
        let off = |i: &u8| (v - scale * f32::from(table[usize::from(*i)])).abs();
        (0..16).min_by(|a, b| off(a).total_cmp(&off(b))).unwrap_or(0)
    };
    (0..16).map(move |j| nearest(x[j]) | nearest(x[j + 16]) << 4)
}

/// The scale for which the table's values are nearest to `x`: the largest value need not be one of
/// the table's ends.
fn fit(x: &[f32], table: &[i8; 16]) -> f32 {
    let nearest = |v: f32, scale: f32| {
        let off = table.iter().map(|t| (v - scale * f32::from(*t)).abs());
        off.fold(f32::INFINITY, f32::min)
    };
    // The table is not symmetrical: the largest value may lie at either end.
    let extreme = x.iter().fold(0.0f32, |m, &v| if v.abs() > m.abs() { v } else { m });
    let error = |scale: &f32| x.iter().map(|v| nearest(*v, *scale).powi(2)).sum::<f32>();
    let candidates =
        (0..10).flat_map(|i| [-127.0, 113.0].map(|end| extreme / end * (1.08 - 0.04 * i as f32)));
    candidates.min_by(|a, b| error(a).total_cmp(&error(b))).unwrap_or(0.0)
}

fn largest(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |m, v| m.max(v.abs()))
}

pub fn encode_iq4_nl(values: &[f32]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for x in values.chunks_exact(32) {
        let d = half::f16::from_f32(fit(x, &IQ4));
        bytes.extend(d.to_le_bytes());
        bytes.extend(nibbles(x, &IQ4, d.to_f32()));
    }
    bytes
}

pub fn encode_iq4_xs(values: &[f32]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for x in values.chunks_exact(256) {
        let wanted: Vec<f32> = x.chunks_exact(32).map(|x| fit(x, &IQ4)).collect();
        let d = half::f16::from_f32(largest(&wanted) / 31.0);
        let step = |scale: &f32| {
            let exact = scale / d.to_f32();
            if exact.is_finite() { exact.round().clamp(-32.0, 31.0) } else { 0.0 }
        };
        let scales: Vec<f32> = wanted.iter().map(step).collect();
        let stored: Vec<u8> = scales.iter().map(|s| (*s as i8 + 32) as u8).collect();
        let high = stored.iter().enumerate().fold(0u16, |bits, (i, s)| bits | u16::from(s >> 4) << (2 * i));
        bytes.extend(d.to_le_bytes());
        bytes.extend(high.to_le_bytes());
        bytes.extend(stored.chunks_exact(2).map(|s| s[0] & 15 | s[1] << 4));
        for (x, s) in x.chunks_exact(32).zip(&scales) {
            bytes.extend(nibbles(x, &IQ4, d.to_f32() * s));
        }
    }
    bytes
}

pub fn encode_mxfp4(values: &[f32]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for x in values.chunks_exact(32) {
        // The largest value is 6 times the scale.
        let e = ((largest(x) / 6.0).log2().ceil() + 127.0).clamp(0.0, 254.0) as u8;
        bytes.push(e);
        bytes.extend(nibbles(x, &E2M1, e8m0_half(e)));
    }
    bytes
}

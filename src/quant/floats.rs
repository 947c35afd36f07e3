//! Plain floats: f32, f16 and bf16, little endian, and the two of eight bits.

pub fn decode_f32(bytes: &[u8], out: &mut [f32]) {
    for (o, b) in out.iter_mut().zip(bytes.chunks_exact(4)) {
        *o = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    }
}

pub fn decode_f16(bytes: &[u8], out: &mut [f32]) {
    for (o, b) in out.iter_mut().zip(bytes.chunks_exact(2)) {
        *o = half::f16::from_le_bytes([b[0], b[1]]).to_f32();
    }
}

pub fn decode_bf16(bytes: &[u8], out: &mut [f32]) {
    for (o, b) in out.iter_mut().zip(bytes.chunks_exact(2)) {
        *o = half::bf16::from_le_bytes([b[0], b[1]]).to_f32();
    }
}

pub fn encode_f32(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

pub fn encode_f16(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|&v| half::f16::from_f32(v).to_le_bytes()).collect()
}

pub fn encode_bf16(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|&v| half::bf16::from_f32(v).to_le_bytes()).collect()
}

/// A byte of E4M3: 448 is the largest, and there is no infinity.
fn f8_e4m3(byte: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f32::from(byte & 7));
    let value = match (exponent, byte & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa * 2f32.powi(-9),
        _ => (mantissa + 8.0) * 2f32.powi(exponent - 10),
    };
    if byte & 0x80 == 0 { value } else { -value }
}

pub fn decode_f8_e4m3(bytes: &[u8], out: &mut [f32]) {
    out.iter_mut().zip(bytes).for_each(|(o, b)| *o = f8_e4m3(*b));
}

pub fn decode_f8_e5m2(bytes: &[u8], out: &mut [f32]) {
    out.iter_mut().zip(bytes).for_each(|(o, b)| *o = half::f16::from_bits(u16::from(*b) << 8).to_f32());
}

/// The nearest of the numbers from 0 to `last`, which rise with their bytes; of two the even one.
fn nearest(value: f32, last: u8, of: impl Fn(u8) -> f32) -> u8 {
    let sign = u8::from(value.is_sign_negative()) << 7;
    let size = value.abs().min(of(last));
    let (mut low, mut high) = (0, last);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if of(middle) <= size { low = middle } else { high = middle }
    }
    let (below, above) = (size - of(low), of(high) - size);
    sign | if below < above || (below == above && low % 2 == 0) { low } else { high }
}

pub fn encode_f8_e4m3(values: &[f32]) -> Vec<u8> {
    values.iter().map(|v| nearest(*v, 0x7e, f8_e4m3)).collect()
}

pub fn encode_f8_e5m2(values: &[f32]) -> Vec<u8> {
    let of = |byte: u8| half::f16::from_bits(u16::from(byte) << 8).to_f32();
    values.iter().map(|v| nearest(*v, 0x7b, of)).collect()
}

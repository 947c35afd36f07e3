// Table: what nibbles stand for in MXFP4, floats of four bits (E2M1): sign, two bits of exponent, one of mantissa;
// here doubled, 0 1 2 3 4 6 8 12, so that they are whole numbers.
// What `entries` adds to them, so that they are bytes.
const TABLE_OFFSET = 12.0;
// Whether the upper eight entries are the lower ones with the other sign.
const MIRRORED = true;

// The entries for four nibbles, one in each byte. What nibbles 4 to 7 have more than their number is 0 1 2 5.
fn entries(nibbles: u32) -> vec4<f32> {
    let large = (nibbles >> 2u) & 0x01010101u;
    let odd = nibbles & large;
    let upper = (nibbles >> 1u) & large;
    let size = (nibbles & 0x07070707u) + odd + 2u * (upper + (odd & upper));
    let negative = ((nibbles >> 3u) & 0x01010101u) * 255u;
    return bytes(size + 0x0c0c0c0cu - 2u * (size & negative), 31u, 0.0);
}

// Bytes as floats. AMD's GPUs turn a byte at any place into a float with one instruction.

// The bytes of a word; none has bits beyond those of `most`.
fn bytes(word: u32, most: u32) -> vec4<f32> { return vec4<f32>(unpack4xU8(word)); }

// Of each byte of a word the four bits from `shift` on, which is 0 or 4.
fn nibbles(word: u32, shift: u32) -> vec4<f32> {
    return vec4<f32>(unpack4xU8((word >> shift) & 0x0f0f0f0fu));
}

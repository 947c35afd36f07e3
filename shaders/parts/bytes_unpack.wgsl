// Bits of words as floats. AMD's GPUs turn a byte at any place into a float with one instruction.

// Whether `offset` is taken off: it would be an operation for each weight. And what is left to take off, times x.
const TAKES_OFF = false;
fn left(offset: f32, x: f32) -> f32 { return offset * x; }

// Of each word the bits of `most` that begin at `at`; the last of them is below bit 23.
fn picked(words: vec4<u32>, at: vec4<u32>, most: u32, offset: f32) -> vec4<f32> {
    return vec4<f32>((words >> at) & vec4<u32>(most));
}

// Of each byte of a word the bits of `most` that begin at `shift`.
fn fields(word: u32, shift: u32, most: u32, offset: f32) -> vec4<f32> {
    return vec4<f32>(unpack4xU8((word >> shift) & (most * 0x01010101u)));
}

// The bytes of a word; none has bits beyond those of `most`.
fn bytes(word: u32, most: u32, offset: f32) -> vec4<f32> { return vec4<f32>(unpack4xU8(word)); }

// Of the sixteen fields of two bits in a word those at 2 i + 8 c, each with twos_lift(i) more.
const TWOS_LIFT = false;
fn twos_lift(i: u32) -> f32 { return 0.0; }
fn twos(word: u32, i: u32) -> vec4<f32> { return fields(word, 2u * i, 3u, 0.0); }

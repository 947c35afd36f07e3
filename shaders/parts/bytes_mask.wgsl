// Bits of words as floats, for GPUs that are slow to shift and to convert (NVIDIA's). Masked in place they are
// the lower bits of a float between 2^23 and 2^24, of which a multiply-add leaves them: two operations, and exact.

// The upper bits of a float, for each of four: 0x4b000000 are those of 2^23. An operation has room for one literal,
// and the mask is it: what the compiler can't know, that there are fewer than 2^31 groups, keeps these in a register.
fn held(bits: u32) -> vec4<u32> { return vec4<u32>(bits + (p.groups >> 31u)); }

// Whether `offset` is taken off: here it costs nothing. And what is left to take off, times x.
const TAKES_OFF = true;
fn left(offset: f32, x: f32) -> f32 { return 0.0; }

// Of each word the bits of `most` that begin at `at`; the last of them is below bit 23.
fn picked(words: vec4<u32>, at: vec4<u32>, most: u32, offset: f32) -> vec4<f32> {
    let bits = (words & (vec4<u32>(most) << at)) | held(0x4b000000u);
    let unit = bitcast<vec4<f32>>((vec4<u32>(127u) - at) << vec4<u32>(23u));
    return fma(bitcast<vec4<f32>>(bits), unit, -8388608.0 * unit - offset);
}

// Of each byte of a word the bits of `most` that begin at `shift`.
fn fields(word: u32, shift: u32, most: u32, offset: f32) -> vec4<f32> {
    let upper = word >> 16u;
    let at = vec4<u32>(shift, shift + 8u, shift, shift + 8u);
    return picked(vec4<u32>(word, word, upper, upper), at, most, offset);
}

// The bytes of a word; none has bits beyond those of `most`. Whole bytes are as fast by conversion.
fn bytes(word: u32, most: u32, offset: f32) -> vec4<f32> {
    if (most > 127u) {
        return vec4<f32>((vec4<u32>(word) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(most)) - offset;
    }
    return fields(word, 0u, most, offset);
}

// Of the sixteen fields of two bits in a word those at 2 i + 8 c, each with twos_lift(i) more: 4 or 16. Their first
// bits come to lie at 21, where they count as 1 in a float between 4 and 8, or at 19, as in one between 16
// and 32. So no operation is needed to take 2^23 off; what is too much is taken off a sum, which costs a few bits of
// it where 2^23 would cost all.
const TWOS_LIFT = true;
fn twos_lift(i: u32) -> f32 { return select(16.0, 4.0, i % 2u == 1u); }
fn twos(word: u32, i: u32) -> vec4<f32> {
    // The fields at 2 and 6, of the lower half of each byte and of the upper one.
    let low = vec4<u32>(word << 19u, word << 11u, word << 3u, word >> 5u);
    let high = vec4<u32>(word << 15u, word << 7u, word >> 1u, word >> 9u);
    let moved = select(high, low, i < 2u);
    if (i % 2u == 1u) {
        return bitcast<vec4<f32>>((moved & vec4<u32>(3u << 21u)) | held(0x40800000u));
    }
    return bitcast<vec4<f32>>((moved & vec4<u32>(3u << 19u)) | held(0x41800000u));
}

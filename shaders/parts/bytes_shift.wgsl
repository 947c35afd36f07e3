// Bytes as floats, each shifted and masked by itself, for GPUs where that is faster.

// The bytes of a word; none has bits beyond those of `most`.
fn bytes(word: u32, most: u32) -> vec4<f32> {
    return vec4<f32>((vec4<u32>(word) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(most));
}

// Of each byte of a word the four bits from `shift` on, which is 0 or 4.
fn nibbles(word: u32, shift: u32) -> vec4<f32> {
    return vec4<f32>((vec4<u32>(word) >> (vec4<u32>(0u, 8u, 16u, 24u) + shift)) & vec4<u32>(15u));
}

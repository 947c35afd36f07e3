// Order: groups of a row are neighbours.
@group(0) @binding(1) var<storage, read> scales: array<u32>;  // [rows, k / 32] packed

// Where group `g` of a row lies.
fn block_at(row: u32, g: u32) -> u32 { return row * p.groups + g; }

// The quants of the group that lies at `g`, at `k` of its row: a vector, or of half as many `bytes` half of one, which
// neighbouring lanes read at once. Rows hold whole superblocks, so that `k` tells which half it is, the same for all rows.
fn quants_of(g: u32, k: u32, bytes: u32) -> vec4<u32> {
    if (bytes == 16u) {
        return w[g];
    }
    let two = w[g / 2u];
    return select(two.zwzw, two.xyxy, k % 2u == 0u);
}

// What lies beside the group at `g`: of `bytes` whole words, and then, or only, a half or a byte, in the lowest bits.
fn side_of(g: u32, bytes: u32) -> vec2<u32> {
    // Of what shares a word one: WGSL shifts by the remainder of 32.
    switch bytes {
        case 1u: { return vec2<u32>(scales[g / 4u] >> (8u * g), 0u); }
        case 2u: { return vec2<u32>(scales[g / 2u] >> (16u * g), 0u); }
        case 4u: { return vec2<u32>(scales[g], 0u); }
        case 6u: {
            let at = g / 2u * 3u;
            return vec2<u32>(scales[at + g % 2u], scales[at + 2u] >> (16u * g));
        }
        case 8u: { return vec2<u32>(scales[g * 2u], scales[g * 2u + 1u]); }
        default: { return vec2<u32>(0u); }
    }
}

// Where the superblock of eight lies that has the group at `g`.
fn super_of(g: u32) -> u32 { return g / 8u; }

// Word `i` of the `words` of scales of the superblock at `at`.
fn super_word(at: u32, words: u32, i: u32) -> u32 { return scales[at * words + i]; }

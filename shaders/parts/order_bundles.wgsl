// Order: the groups of the same columns in 32 rows are neighbours, in the order of rows 0, 4, 8 ..
// 28, 1, 5 .. 31. When each lane of a CPU reads one of its four rows, they read in a run. What takes less than a
// vector lies in pieces: the first words of the 32 rows in their order, then the second ones, and so on, so that a lane
// reads the words of its rows at once.
@group(0) @binding(1) var<storage, read> scales: array<vec4<u32>>;  // [rows / 32, k / 32, pieces, 32] packed

const NEXT_ROW = 8u;  // from a group to that of the next of four rows

// Where group `g` of a row lies.
fn block_at(row: u32, g: u32) -> u32 {
    return (row / 32u * p.groups + g) * 32u + row % 4u * NEXT_ROW + row % 32u / 4u;
}

// The row of its bundle that a group belongs to.
fn row_of(g: u32) -> u32 { return g % NEXT_ROW * 4u + g % 32u / NEXT_ROW; }

fn word(i: u32) -> u32 { return scales[i / 4u][i % 4u]; }

// The quants of the group that lies at `g`, at `k` of its row: a vector, or of half as many `bytes` two words.
fn quants_of(g: u32, k: u32, bytes: u32) -> vec4<u32> {
    if (bytes == 16u) {
        return w[g];
    }
    let at = g / 32u * 16u + row_of(g) / 4u;
    let i = row_of(g) % 4u;
    return vec4<u32>(w[at][i], w[at + 8u][i], 0u, 0u);
}

// What lies beside the group at `g`: of `bytes` whole words, and then, or only, a half or a byte, in the lowest bits.
fn side_of(g: u32, bytes: u32) -> vec2<u32> {
    let at = g / 32u * 8u * bytes;
    let row = row_of(g);
    // Of what shares a word one: WGSL shifts by the remainder of 32.
    switch bytes {
        case 1u: { return vec2<u32>(word(at + row / 4u) >> (8u * row), 0u); }
        case 2u: { return vec2<u32>(word(at + row / 2u) >> (16u * row), 0u); }
        case 4u: { return vec2<u32>(word(at + row), 0u); }
        case 6u: { return vec2<u32>(word(at + row), word(at + 32u + row / 2u) >> (16u * row)); }
        case 8u: { return vec2<u32>(word(at + row), word(at + 32u + row)); }
        default: { return vec2<u32>(0u); }
    }
}

// Where the superblock of eight lies that has the group at `g`.
fn super_of(g: u32) -> u32 { return g / 256u * 32u + g % 32u; }

// Word `i` of the `words` of scales of the superblock at `at`.
fn super_word(at: u32, words: u32, i: u32) -> u32 { return word((at / 32u * words + i) * 32u + row_of(at)); }

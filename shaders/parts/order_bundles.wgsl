// Order: the groups of the same columns in 32 rows are neighbours, in the order of rows 0, 4, 8 ..
// 28, 1, 5 .. 31. When each lane of a CPU reads one of its four rows, they read in a run.
const NEXT_ROW = 8u;  // from a group to that of the next of four rows

// Where group `g` of a row lies.
fn block_at(row: u32, g: u32) -> u32 {
    return (row / 32u * p.groups + g) * 32u + row % 4u * NEXT_ROW + row % 32u / 4u;
}

// The quants of the group that lies at `g` where two share a vector: two words, since CPUs read one at a time.
fn half_vector(g: u32, k: u32) -> vec2<u32> {
    let at = g % 2u * 2u;
    return vec2<u32>(w[g / 2u][at], w[g / 2u][at + 1u]);
}

// Where the superblock of eight lies that has the group at `g`.
fn super_of(g: u32) -> u32 { return g / 256u * 32u + g % 32u; }

// Order: groups of a row are neighbours.

// Where group `g` of a row lies.
fn block_at(row: u32, g: u32) -> u32 { return row * p.groups + g; }

// The quants of the group that lies at `g`, at `k` of its row, where two share a vector, which neighbouring lanes read at
// once. Rows hold whole superblocks, so that `k` tells which half it is, the same for all rows.
fn half_vector(g: u32, k: u32) -> vec2<u32> {
    let two = w[g / 2u];
    return select(two.zw, two.xy, k % 2u == 0u);
}

// Where the superblock of eight lies that has the group at `g`.
fn super_of(g: u32) -> u32 { return g / 8u; }

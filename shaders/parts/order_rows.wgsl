// Order: groups of a row are neighbours.

// Where group `g` of a row lies.
fn block_at(row: u32, g: u32) -> u32 { return row * p.groups + g; }

// The quants of the group that lies at `g` where two share a vector, which neighbouring lanes read at once.
fn half_vector(g: u32) -> vec2<u32> {
    let two = w[g / 2u];
    return select(two.zw, two.xy, g % 2u == 0u);
}

// Of the group that lies at `g`: where its superblock of eight lies, and its place in there.
fn super_of(g: u32) -> vec2<u32> { return vec2<u32>(g / 8u, g % 8u); }

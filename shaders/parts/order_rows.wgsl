// Order: groups of a row are neighbours.

// Where group `g` of a row lies.
fn block_at(row: u32, g: u32) -> u32 { return row * p.groups + g; }

// Of the group that lies at `g`: where its superblock of eight lies, and its place in there.
fn super_of(g: u32) -> vec2<u32> { return vec2<u32>(g / 8u, g % 8u); }

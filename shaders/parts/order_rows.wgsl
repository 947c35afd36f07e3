// Order: groups of a row are neighbours.

// Where group `g` of a row lies.
fn place(row: u32, g: u32) -> u32 { return row * p.groups + g; }

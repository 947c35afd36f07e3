// Lookup: none, for formats without a table.
fn start_lookup(index: u32) {}

// Whether the lane for group `g` of a row has anything to do.
fn comes_along(g: u32) -> bool { return g < p.groups; }

// Lookup: entries of a format's table, computed.

// What `looked_up` gives more than the table holds.
const LOOKED_UP_OFFSET = TABLE_OFFSET;

fn start_lookup(index: u32) {}

// Whether the lane for group `g` of a row has anything to do.
fn comes_along(g: u32) -> bool { return g < p.groups; }

// Activations as such a lane gets them.
fn own(x: vec4<f32>, g: u32) -> vec4<f32> { return x; }

// The entries for the nibbles from `shift` on, 0 or 4, of each byte of a word.
fn looked_up(word: u32, shift: u32) -> vec4<f32> { return entries((word >> shift) & 0x0f0f0f0fu); }

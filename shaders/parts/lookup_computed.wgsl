// Lookup: entries of a format's table, computed; the lanes then do as without a table (`lookup_none`).

// What `looked_up` gives more than the table holds.
const LOOKED_UP_OFFSET = TABLE_OFFSET;

// The entries for the nibbles from `shift` on, 0 or 4, of each byte of a word.
fn looked_up(word: u32, shift: u32) -> vec4<f32> { return entries((word >> shift) & 0x0f0f0f0fu); }

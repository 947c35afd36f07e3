// Lookup: entries of a format's table, held by the lanes of a subgroup, of which there are 32: NVIDIA's GPUs
// shuffle faster than they compute. All lanes must reach it.
const LOOKED_UP_OFFSET = 0.0;

var<private> entry: f32;

// To be called first, by lane `index` of its subgroup.
fn start_lookup(index: u32) { entry = entries(index & 15u).x - TABLE_OFFSET; }

// Whether the lane for group `g` of a row has anything to do: all have, to be looked up at.
fn comes_along(g: u32) -> bool { return true; }

// The entries for the nibbles from `shift` on, 0 or 4, of each byte of a word. Two lanes hold each entry, so that
// a bit of the next nibble does no harm.
fn looked_up(word: u32, shift: u32) -> vec4<f32> {
    return vec4<f32>(
        subgroupShuffle(entry, (word >> shift) & 31u),
        subgroupShuffle(entry, (word >> (shift + 8u)) & 31u),
        subgroupShuffle(entry, (word >> (shift + 16u)) & 31u),
        subgroupShuffle(entry, (word >> (shift + 24u)) & 31u),
    );
}

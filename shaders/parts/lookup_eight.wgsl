// Lookup: entries of a format's table, two in each of the first eight lanes of a subgroup: lanes of CPUs look up at one
// another in one instruction. All lanes must reach it.
const LOOKED_UP_OFFSET = 0.0;

var<private> lower: f32;  // the entry for the lane's index
var<private> upper: f32;  // the eighth after it

// To be called first, by lane `index` of its subgroup.
fn start_lookup(index: u32) {
    let two = entries(index % 8u * 0x101u + 0x800u) - TABLE_OFFSET;
    lower = two.x;
    upper = two.y;
}

// The entry for the nibble at bit `shift` of a word.
fn entry_of(word: u32, shift: u32) -> f32 {
    let i = word >> shift;
    let entry = subgroupShuffle(lower, i & 7u);
    if (MIRRORED) {
        return bitcast<f32>(bitcast<u32>(entry) ^ ((word << (28u - shift)) & 0x80000000u));
    }
    return select(entry, subgroupShuffle(upper, i & 7u), (i & 8u) != 0u);
}

// The entries for the nibbles from `shift` on, 0 or 4, of each byte of a word.
fn looked_up(word: u32, shift: u32) -> vec4<f32> {
    return vec4<f32>(
        entry_of(word, shift),
        entry_of(word, shift + 8u),
        entry_of(word, shift + 16u),
        entry_of(word, shift + 24u),
    );
}

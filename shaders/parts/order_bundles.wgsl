// Order: the groups of the same columns in 32 rows are neighbours, in the order of rows 0, 4, 8 ..
// 28, 1, 5 .. 31. When each lane of a CPU reads one of its four rows, they read in a run.
const NEXT_ROW = 8u;  // from a group to that of the next of four rows

// Where group `g` of a row lies.
fn place(row: u32, g: u32) -> u32 {
    return (row / 32u * p.groups + g) * 32u + row % 4u * NEXT_ROW + row % 32u / 4u;
}

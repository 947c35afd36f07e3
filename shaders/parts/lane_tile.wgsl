// Lanes: the team is the whole workgroup, which shares a tile and reduces nothing. All of the
// workgroup memory is the body's.
struct Team {
    index: u32,  // of this team in the grid's x and y
    count: u32,  // teams in the grid's x and y
}

struct Lane {
    index: u32,  // of this invocation in its team
    count: u32,  // invocations in a team
}

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    kernel(group, Team(group.x + group.y * groups.x, groups.x * groups.y), Lane(index, WG));
}

// Lanes: as `lane_tile`, with the numbers of subgroups; what meets subgroup by subgroup is the
// body's matter.
struct Team {
    index: u32,      // of this team in the grid's x and y
    count: u32,      // teams in the grid's x and y
    subgroups: u32,  // in the workgroup
}

struct Lane {
    index: u32,     // of this invocation in its team
    count: u32,     // invocations in a team
    subgroup: u32,  // of this invocation's subgroup in the workgroup
}

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
) {
    let team = Team(group.x + group.y * groups.x, groups.x * groups.y, subgroups);
    kernel(group, team, Lane(index, WG, subgroup));
}

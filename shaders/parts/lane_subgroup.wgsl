// Lanes: a team is a subgroup of whatever size the driver runs; a workgroup holds several.
struct Team {
    index: u32,  // of this team in the grid's x and y
    count: u32,  // teams in the grid's x and y
    lanes: u32,  // invocations in a team
}

struct Lane {
    index: u32,  // of this invocation in its team
    count: u32,  // invocations in a team
}

fn sum_all(lane: Lane, v: f32) -> f32 { return subgroupAdd(v); }

fn sum_all4(lane: Lane, v: vec4<f32>) -> vec4<f32> { return subgroupAdd(v); }

fn max_all4(lane: Lane, v: vec4<f32>) -> vec4<f32> { return subgroupMax(v); }

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_invocation_id) index: u32,
    @builtin(subgroup_size) size: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
) {
    let first = (group.x + group.y * groups.x) * subgroups;
    kernel(group, Team(first + subgroup, groups.x * groups.y * subgroups, size), Lane(index, size));
}

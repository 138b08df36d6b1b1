// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A filter as the kernel takes it: a program that searches the calls' numbers.
//!
//! ```text
//!   the architecture is not x86-64 ─► the process is killed
//!   number < n?  ── yes ─► number < m? …        a tree of comparisons
//!        └─ no ──► number < o? ─ yes ─► a verdict, or looks at an argument first
//! ```
//!
//! When a thread enters a filter the kernel tries it on each call that there is, to
//! know which ones are allowed whatever their arguments. A list, which is what
//! `seccompiler` makes, is gone through to its end for most of them: 7 ms for all
//! threads of a machine, where this takes a few comparisons each. The tests hold
//! the two against each other.

use std::collections::BTreeMap;

use seccompiler::{BpfProgram, sock_filter};

/// Calls, and what their arguments have to be like: as one of these rules says. No
/// rules are any arguments.
pub(super) type Rules = BTreeMap<u32, Vec<Rule>>;

/// The low 32 bits of an argument, as far as they are in `mask`, are `value`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) argument: u8,
    pub(super) mask: u32,
    pub(super) value: u32,
}

impl Rule {
    /// The argument is this number.
    pub(super) fn is(argument: u8, value: u32) -> Self {
        Self::has(argument, u32::MAX, value)
    }

    /// These bits of the argument are so.
    pub(super) fn has(argument: u8, mask: u32, value: u32) -> Self {
        Self {
            argument,
            mask,
            value,
        }
    }
}

/// What comes of calls from a number on.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict<'a> {
    /// This action of the kernel's.
    Always(u32),
    /// They are allowed if one of the rules holds, and otherwise not.
    If(&'a [Rule]),
}

const ARCHITECTURE: u32 = 0xC000_003E;

/// Fields of `struct seccomp_data`.
const NUMBER_AT: u32 = 0;
const ARCHITECTURE_AT: u32 = 4;
const ARGUMENTS_AT: u32 = 16;
const ARGUMENT_SIZE: u32 = 8;

const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_IF_EQUAL: u16 = 0x15;
const JUMP_IF_NOT_BELOW: u16 = 0x35;
const RETURN: u16 = 0x06;

/// The filter that allows what `allowed` does, answers the calls in `absent` with
/// "no such call", and does `otherwise` at all others.
pub(super) fn compile(allowed: &Rules, absent: &[u32], otherwise: u32) -> BpfProgram {
    let no_such_call = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs();
    let mut calls: BTreeMap<u32, Verdict<'_>> = BTreeMap::new();
    for (call, rules) in allowed {
        let verdict = match rules.as_slice() {
            [] => Verdict::Always(libc::SECCOMP_RET_ALLOW),
            rules => Verdict::If(rules),
        };
        calls.insert(*call, verdict);
    }
    for call in absent {
        calls.insert(*call, Verdict::Always(no_such_call));
    }
    let mut steps: Vec<(u32, Verdict<'_>)> = vec![(0, Verdict::Always(otherwise))];
    for (call, verdict) in calls {
        // The step that the call before ended with, unless there is a gap.
        steps.pop_if(|(from, _)| *from == call);
        if steps.last().is_none_or(|(_, before)| *before != verdict) {
            steps.push((call, verdict));
        }
        steps.push((call.saturating_add(1), Verdict::Always(otherwise)));
    }
    let mut program = vec![
        statement(LOAD, ARCHITECTURE_AT),
        jump(JUMP_IF_EQUAL, ARCHITECTURE, 1, 0),
        statement(RETURN, libc::SECCOMP_RET_KILL_PROCESS),
        statement(LOAD, NUMBER_AT),
    ];
    program.extend(tree(&steps, otherwise));
    program
}

fn tree(steps: &[(u32, Verdict<'_>)], otherwise: u32) -> BpfProgram {
    let (left, right) = steps.split_at(steps.len() / 2);
    let Some((first, verdict)) = right.first() else {
        return vec![statement(RETURN, otherwise)];
    };
    if left.is_empty() {
        return end(verdict, otherwise);
    }
    let left = tree(left, otherwise);
    let mut program = match u8::try_from(left.len()) {
        Ok(len) => vec![jump(JUMP_IF_NOT_BELOW, *first, len, 0)],
        // Too far for a comparison's own jump. The kernel takes no program that
        // is too long for this one's.
        Err(_) => vec![
            jump(JUMP_IF_NOT_BELOW, *first, 0, 1),
            statement(JUMP, u32::try_from(left.len()).unwrap_or(u32::MAX)),
        ],
    };
    program.extend(left);
    program.extend(tree(right, otherwise));
    program
}

fn end(verdict: &Verdict<'_>, otherwise: u32) -> BpfProgram {
    let rules = match verdict {
        Verdict::Always(action) => return vec![statement(RETURN, *action)],
        Verdict::If(rules) => rules,
    };
    let mut program = Vec::new();
    for rule in *rules {
        let at = ARGUMENTS_AT + ARGUMENT_SIZE * u32::from(rule.argument);
        program.push(statement(LOAD, at));
        if rule.mask != u32::MAX {
            program.push(statement(AND, rule.mask));
        }
        program.push(jump(JUMP_IF_EQUAL, rule.value & rule.mask, 0, 1));
        program.push(statement(RETURN, libc::SECCOMP_RET_ALLOW));
    }
    program.push(statement(RETURN, otherwise));
    program
}

fn statement(code: u16, k: u32) -> sock_filter {
    jump(code, k, 0, 0)
}

/// So many instructions are skipped if the comparison holds, and if not.
fn jump(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use seccompiler::SeccompCmpOp::{Eq, MaskedEq};
    use seccompiler::{
        SeccompAction, SeccompCmpArgLen, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
    };

    use super::super::{Kind, calls};
    use super::*;

    const TRAP: u32 = libc::SECCOMP_RET_TRAP;

    /// What the kernel does at a call.
    fn run(program: &[sock_filter], architecture: u32, call: u32, args: [u64; 6]) -> u32 {
        let mut data = [0; 16];
        (data[0], data[1]) = (call, architecture);
        for (n, arg) in args.into_iter().enumerate() {
            data[4 + 2 * n] = u32::try_from(arg & 0xFFFF_FFFF).unwrap();
            data[5 + 2 * n] = u32::try_from(arg >> 32).unwrap();
        }
        let (mut at, mut loaded) = (0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = program[at];
            let either = |holds| usize::from(if holds { jt } else { jf });
            at += 1;
            match code {
                LOAD => loaded = data[usize::try_from(k).unwrap() / 4],
                AND => loaded &= k,
                JUMP => at += usize::try_from(k).unwrap(),
                JUMP_IF_EQUAL => at += either(loaded == k),
                JUMP_IF_NOT_BELOW => at += either(loaded >= k),
                RETURN => return k,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    /// The same, as a well-known crate makes it.
    fn list(allowed: &Rules) -> BpfProgram {
        let rule = |rule: &Rule| {
            let how = match rule.mask {
                u32::MAX => Eq,
                mask => MaskedEq(mask.into()),
            };
            let length = SeccompCmpArgLen::Dword;
            let value = rule.value.into();
            let condition = SeccompCondition::new(rule.argument, length, how, value).unwrap();
            SeccompRule::new(vec![condition]).unwrap()
        };
        let rules = allowed.iter().map(|(call, rules)| {
            let rules = rules.iter().map(rule).collect::<Vec<_>>();
            (i64::from(*call), rules)
        });
        let (trap, allow) = (SeccompAction::Trap, SeccompAction::Allow);
        let filter = SeccompFilter::new(rules.collect(), trap, allow, TargetArch::x86_64);
        filter.unwrap().try_into().unwrap()
    }

    fn same(allowed: &Rules, absent: &BTreeSet<u32>, call: u32, args: [u64; 6]) {
        let absent_calls: Vec<_> = absent.iter().copied().collect();
        let tree = compile(allowed, &absent_calls, TRAP);
        let expected = if absent.contains(&call) {
            libc::SECCOMP_RET_ERRNO | 0x26
        } else {
            run(&list(allowed), ARCHITECTURE, call, args)
        };
        assert_eq!(
            run(&tree, ARCHITECTURE, call, args),
            expected,
            "{call} {args:x?} {allowed:?} {absent:?}"
        );
        assert!(tree.len() < 4096, "{}", tree.len());
    }

    fn rules() -> impl Strategy<Value = Vec<Rule>> {
        let rule = (
            0..6_u8,
            prop_oneof![Just(u32::MAX), Just(4), Just(0xFF00)],
            0..8_u32,
        );
        let rule = rule.prop_map(|(argument, mask, value)| Rule::has(argument, mask, value & mask));
        prop::collection::vec(rule, 0..6)
    }

    proptest! {
        #[test]
        fn the_tree_allows_what_a_list_does(
            allowed in prop::collection::btree_map(0..400_u32, rules(), 0..120),
            absent in prop::collection::btree_set(0..400_u32, 0..8),
            call in prop_oneof![0..401_u32, any::<u32>()],
            args in prop::array::uniform6(prop_oneof![0..8_u64, any::<u64>()]),
        ) {
            same(&allowed, &absent, call, args);
        }
    }

    #[test]
    fn each_kind_of_thread_may_do_what_a_list_would_let_it() {
        for kind in Kind::ALL {
            let allowed = calls::of(kind);
            let (tree, list) = (compile(&allowed, &[], TRAP), list(&allowed));
            let mut tried = 0;
            let mut agree = |call, args| {
                let [one, other] = [&tree, &list].map(|it| run(it, ARCHITECTURE, call, args));
                assert_eq!(one, other, "{kind:?}: {call} {args:x?}");
                tried += 1;
            };
            for call in 0..600 {
                agree(call, [0; 6]);
                agree(call, [u64::MAX; 6]);
                for rule in allowed.get(&call).into_iter().flatten() {
                    let value = u64::from(rule.value);
                    for value in [value, value ^ 1, value | 1 << 32, value.wrapping_sub(1)] {
                        let mut args = [0; 6];
                        args[usize::from(rule.argument)] = value;
                        agree(call, args);
                    }
                }
            }
            assert!(tried > 1200, "{kind:?}");
        }
    }

    #[test]
    fn every_number_of_a_few_calls_gets_its_verdict() {
        let rule = vec![Rule::is(1, 7)];
        let allowed = Rules::from([
            (0, vec![]),
            (1, vec![]),
            (3, rule),
            (4, vec![]),
            (9, vec![]),
        ]);
        for call in (0..12).chain([u32::MAX, 0x4000_0000]) {
            for args in [[0; 6], [0, 7, 0, 0, 0, 0], [0, 7 | 1 << 32, 0, 0, 0, 0]] {
                same(&allowed, &BTreeSet::from([2, 9]), call, args);
            }
        }
    }

    #[test]
    fn calls_of_another_architecture_end_the_process() {
        let program = compile(&Rules::from([(0, vec![])]), &[], TRAP);
        let i386 = 0x4000_0003;
        let killed = libc::SECCOMP_RET_KILL_PROCESS;
        assert_eq!(run(&program, i386, 0, [0; 6]), killed);
        let allowed = libc::SECCOMP_RET_ALLOW;
        assert_eq!(run(&program, ARCHITECTURE, 0, [0; 6]), allowed);
    }

    #[test]
    fn most_calls_are_found_in_few_steps() {
        let allowed: Rules = (0..100).map(|n| (3 * n, vec![])).collect();
        let program = compile(&allowed, &[], TRAP);
        let longest = (0..400).map(|call| {
            let (mut at, mut steps) = (4, 0);
            while program[at].code != RETURN {
                let sock_filter { jt, jf, k, .. } = program[at];
                let holds = call >= k;
                at += 1 + match program[at].code {
                    JUMP => usize::try_from(k).unwrap(),
                    _ => usize::from(if holds { jt } else { jf }),
                };
                steps += 1;
            }
            steps
        });
        assert!(longest.max().unwrap() < 12);
    }
}

//! Cut, flipped, torn and mixed up files: what was acknowledged is recovered, or refused aloud.

use super::*;

#[test]
fn a_cut_at_any_byte_of_the_last_flush_loses_nothing_else() {
    for segment_bytes in [512, 4096] {
        let disk = SimDisk::new();
        let calls = workload();
        let (last, before) = calls.split_last().expect("calls");
        let states = expected(&calls);
        let log = create(&disk, inline(segment_bytes)).expect("created");
        run(&log, before);
        let (path, start) = last_segment(&log);
        run(&log, std::slice::from_ref(last));
        let (path_after, end) = last_segment(&log);
        let start = if path == path_after { start } else { 0 };
        drop(log);
        let kept = states[before.len() - 1].last().expect("one stage");
        for cut in start..end {
            let disk = disk.fork();
            disk.damage(&path_after, |bytes| bytes[cut as usize..].fill(0));
            disk.crash(Crash::DropUnsynced);
            let log = open(&disk, inline(segment_bytes)).unwrap_or_else(|error| panic!("cut at {cut}: {error}"));
            let found = content(&log);
            assert!(&found == kept || states[before.len()].contains(&found), "cut at {cut}: {found:?}");
            // And it goes on from there, for good.
            let next = found.ends.last.expect("entries").index + 1;
            run(&log, &[Call::Append(vec![entry(9, next, 99), entry(9, next + 1, 0)])]);
            let found = content(&log);
            drop(log);
            disk.crash(Crash::DropUnsynced);
            let log = open(&disk, inline(segment_bytes)).unwrap_or_else(|error| panic!("cut at {cut}: {error}"));
            assert_eq!(content(&log), found, "cut at {cut}");
        }
    }
}

/// A file that became shorter lost what was acknowledged, however much looks like a torn tail.
#[test]
fn a_file_cut_off_anywhere_is_refused() {
    let disk = SimDisk::new();
    let log = create(&disk, inline(768)).expect("created");
    run(&log, &workload());
    let (last, _) = last_segment(&log);
    drop(log);
    disk.crash(Crash::DropUnsynced);
    let whole = disk.content(&last).len();
    for len in 0..whole {
        let cut = disk.fork();
        cut.damage(&last, |bytes| bytes.truncate(len));
        let error = open(&cut, inline(768)).err().unwrap_or_else(|| panic!("cut at {len}: opened"));
        let text = error.to_string();
        assert!(matches!(error, Error::Damaged { .. }) && text.contains("cut off"), "cut at {len}: {text}");
        assert_eq!(cut.content(&last).len(), len, "a refusal changes nothing");
    }
    open(&disk, inline(768)).expect("whole, it opens");
}

/// Every bit of every file. What was acknowledged is recovered, or opening refuses, changes nothing
/// and says why. The one exception is the very last flush: to one disk its damage is a torn write.
#[test]
fn any_flipped_bit_is_harmless_or_refused() {
    let options = inline(768);
    let disk = SimDisk::new();
    let mut calls = workload();
    // Two flushes in the last segment, so that the exception is not its head.
    calls.push(Call::Append(vec![entry(3, 33, 3)]));
    let (last, before) = calls.split_last().expect("calls");
    let states = expected(&calls);
    let log = create(&disk, options).expect("created");
    run(&log, before);
    let (path, start) = last_segment(&log);
    run(&log, std::slice::from_ref(last));
    let (path_after, end) = last_segment(&log);
    assert_eq!(path, path_after, "the last flush is not the segment's first");
    drop(log);
    disk.crash(Crash::DropUnsynced);

    let whole = states[calls.len() - 1].last().expect("one stage");
    let without_last = states[calls.len() - 2].last().expect("one stage");
    let (mut refused, mut excepted, mut harmless) = (0, 0, 0);
    for number in segment::numbers(&disk, dir()).expect("listed") {
        let file = segment::path(dir(), number);
        for bit in 0..disk.content(&file).len() * 8 {
            let hurt = disk.fork();
            hurt.damage(&file, |bytes| bytes[bit / 8] ^= 1 << (bit % 8));
            let damaged = hurt.content(&file);
            let in_last_flush = file == path && (start..end).contains(&(bit as u64 / 8));
            match open(&hurt, options) {
                Ok(log) if content(&log) == *whole => harmless += 1,
                Ok(log) => {
                    assert!(in_last_flush, "{}, bit {bit}: lost something", file.display());
                    assert_eq!(content(&log), *without_last, "{}, bit {bit}", file.display());
                    excepted += 1;
                }
                Err(error) => {
                    let text = error.to_string();
                    assert!(matches!(error, Error::Damaged { .. }), "{text}");
                    assert!(text.contains("/log/") && text.contains("at offset"), "{text}");
                    assert!(text.contains("Nothing was changed"), "{text}");
                    assert_eq!(hurt.content(&file), damaged, "a refusal changes nothing");
                    assert!(!in_last_flush, "bit {bit} of the last flush looks torn");
                    refused += 1;
                }
            }
        }
    }
    assert!(refused > 1000 && excepted > 100 && harmless > 1000, "{refused} {excepted} {harmless}");
}

/// Lets each changing operation of a whole life fail in turn, and crashes then.
#[test]
fn a_failure_at_any_operation_loses_nothing_acknowledged() {
    let calls = workload();
    let states = expected(&calls);
    let options = inline(768);
    let disk = SimDisk::new();
    run(&create(&disk, options).expect("created"), &calls);
    let operations = disk.operations();
    assert!(operations > 80, "{operations}");

    for operation in 0..operations {
        for fault in [Fault::Error, Fault::Halt] {
            let crashes = [Crash::DropUnsynced, Crash::KeepUnsynced, Crash::Tear(operation), Crash::Tear(!operation)];
            for crash in crashes {
                let at = format!("{fault:?} at operation {operation}, then {crash:?}");
                let disk = SimDisk::new();
                disk.fail(operation, fault);
                let Ok(log) = create(&disk, options) else {
                    // No identity was written yet: the creation is simply done again.
                    disk.crash(crash);
                    create(&disk, options).unwrap_or_else(|error| panic!("{at}: {error}"));
                    continue;
                };
                let mut acked = 0;
                for call in &calls {
                    let accepted = call.on(&log, Box::new(|_| {})).is_ok();
                    if !accepted || log.fatal().borrow().is_some() {
                        break;
                    }
                    acked += 1;
                }
                if acked < calls.len() {
                    assert!(log.save_vote(vote(9, false), Box::new(|_| {})).is_err(), "{at}: poisoned");
                }
                drop(log);
                disk.crash(crash);
                let log = open(&disk, options).unwrap_or_else(|error| panic!("{at}: {error}"));
                let found = content(&log);
                let kept = acked.checked_sub(1).map(|call| states[call].last().expect("one stage"));
                let allowed = kept.map_or(found.entries.is_empty(), |kept| *kept == found)
                    || states.get(acked).is_some_and(|stages| stages.contains(&found));
                assert!(allowed, "{at}: {acked} calls acknowledged, found {found:?}, wanted {kept:?}");
            }
        }
    }
}

#[test]
fn what_does_not_belong_together_is_refused() {
    let disk = SimDisk::new();
    let options = inline(512);
    let refused = |disk: &SimDisk, incarnation| {
        let opened = Wal::open(Arc::new(disk.clone()), dir(), incarnation, options);
        opened.err().expect("refused").to_string()
    };
    assert!(refused(&disk, INCARNATION).contains("has an identity but no log"));
    let log = create(&disk, options).expect("created");
    run(&log, &(0..30).map(|index| Call::Append(vec![entry(1, index, 30)])).collect::<Vec<_>>());
    drop(log);
    let text = refused(&disk, INCARNATION + 1);
    assert!(text.contains("0000000001.wal") && text.contains("another identity"), "{text}");

    let gap = disk.fork();
    gap.remove(&segment::path(dir(), 2)).expect("removed");
    assert!(refused(&gap, INCARNATION).contains("0000000002.wal is damaged at offset 0: the segment is missing"));
    let beheaded = disk.fork();
    beheaded.remove(&segment::path(dir(), 1)).expect("removed");
    assert!(refused(&beheaded, INCARNATION).contains("neither there nor purged"));
    let swapped = disk.fork();
    let second = disk.content(&segment::path(dir(), 2));
    swapped.damage(&segment::path(dir(), 3), |bytes| *bytes = second);
    assert!(refused(&swapped, INCARNATION).contains("0000000003.wal is damaged at offset 0"));
}

/// A process dies between its write and its sync; the system lives on and shows the next process
/// bytes that no disk has. They count from then on, so opening must sync them.
#[test]
fn what_a_killed_process_wrote_is_synced_before_it_counts() {
    let disk = SimDisk::new();
    let log = create(&disk, inline(4096)).expect("created");
    run(&log, &[Call::Append(vec![entry(1, 0, 5)])]);
    let dead = disk.fork();
    let (path, from) = last_segment(&log);
    run(&log, &[Call::Vote(vote(7, true))]);
    let flush = disk.content(&path)[from as usize..last_segment(&log).1 as usize].to_vec();
    dead.crash(Crash::KeepUnsynced);
    dead.open(&path).and_then(|file| file.write_at(&flush, from)).expect("written, not synced");
    let log = open(&dead, inline(4096)).expect("opened");
    assert_eq!(log.vote(), Some(vote(7, true)));
    dead.crash(Crash::DropUnsynced);
    let log = open(&dead, inline(4096)).expect("opened");
    assert_eq!(log.vote(), Some(vote(7, true)), "a vote that was told is kept");
}

/// What is left of a torn flush must not join what is written over its beginning.
#[test]
fn the_rest_of_a_torn_flush_never_comes_back() {
    for hurt in 0..3 {
        let disk = SimDisk::new();
        let log = create(&disk, inline(4096)).expect("created");
        run(&log, &[Call::Append(vec![entry(1, 0, 5)])]);
        let (path, from) = last_segment(&log);
        let three = (1..4).map(|index| Entry { id: id(1, index), ..entry(1, 1, 0) });
        run(&log, &[Call::Append(three.collect())]);
        let record = (last_segment(&log).1 - from) as usize / 3;
        disk.damage(&path, |bytes| bytes[from as usize + record * hurt] ^= 1);
        disk.crash(Crash::DropUnsynced);
        let log = open(&disk, inline(4096)).expect("torn");
        assert_eq!(content(&log).entries.len(), 1 + hurt);
        // As long as the record it replaces, or as the mark that closed the flush and it together.
        let next = Entry { id: id(2, 1 + hurt as u64), ..entry(2, 1, 0) };
        run(&log, &[Call::Append(vec![next])]);
        let found = content(&log);
        drop(log);
        disk.crash(Crash::DropUnsynced);
        assert_eq!(content(&open(&disk, inline(4096)).expect("opened")), found, "hurt {hurt}");
    }
}

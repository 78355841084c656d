//! Rows go in once, come out in order, and go when their time is over: on disk as in memory.

use tokio::time::{Duration, Instant};

use super::*;

const KEEP: Keep = Keep { age_ms: 1_000_000, bytes: u64::MAX };

/// Both twins.
fn both(keep: Keep) -> Vec<(History, Option<tempfile::TempDir>)> {
    let dir = tempfile::tempdir().unwrap();
    let on_disk = History::open(&dir.path().join("history"), keep).unwrap();
    vec![(History::in_memory(keep), None), (on_disk, Some(dir))]
}

/// What was closed just now. sled's own threads let go of it a moment later.
fn reopened(path: &Path) -> History {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        match History::open(path, KEEP) {
            Err(Error::Io(error)) if error.to_string().contains("lock") && Instant::now() < until => {
                std::thread::yield_now();
            }
            opened => return opened.unwrap(),
        }
    }
}

fn finished(queue: &str, id: &str, revision: u64) -> Row {
    Row::Finished(Box::new(Finished {
        queue: queue.into(),
        id: id.into(),
        state: 4,
        fence: revision - 1,
        create_ms: 1,
        finish_ms: revision * 10,
        create_revision: 1,
        revision,
        result: b"\x00\xffresult".to_vec(),
        ..Finished::default()
    }))
}

fn attempt(queue: &str, id: &str, fence: u64) -> Row {
    let (queue, id) = (queue.to_owned(), id.to_owned());
    let end_ms = fence * 10;
    Row::Attempt(Box::new(Attempt { queue, id, create_revision: 1, fence, end_ms, cause: 1, ..Attempt::default() }))
}

fn query(queue: &str) -> Query {
    Query { queue: queue.into(), page_size: 1_000, ..Query::default() }
}

fn ids(page: &Page) -> Vec<&str> {
    page.entries.iter().map(|(finished, _)| &*finished.id).collect()
}

#[test]
fn packages_are_found_by_id_and_by_time_newest_first() {
    for (mut history, _dir) in both(KEEP) {
        // One id begins with another, one queue with another.
        let rows = [("q", "a", 10), ("q", "aa", 20), ("qq", "a", 30), ("q", "b", 40), ("q", "a", 50)];
        let rows: Vec<Row> = rows.into_iter().map(|(queue, id, at)| finished(queue, id, at)).collect();
        history.write(&rows, 50).unwrap();
        history
            .write(&[attempt("q", "a", 5), attempt("q", "a", 9), attempt("q", "a", 49), attempt("q", "aa", 19)], 51)
            .unwrap();
        assert_eq!(ids(&history.list(&query("q")).unwrap()), ["a", "b", "aa", "a"]);
        assert_eq!(ids(&history.list(&query("qq")).unwrap()), ["a"]);
        let found = history.list(&Query { id: "a".into(), ..query("q") }).unwrap();
        let fences = |at: usize| found.entries[at].1.iter().map(|attempt| attempt.fence).collect::<Vec<_>>();
        assert_eq!((fences(0), fences(1)), (vec![5, 9, 49], vec![5, 9]), "only what came before its end");
        assert_eq!(found.entries[0].0.result, b"\x00\xffresult");
        let between = Query { since: Some(Wall(200)), until: Some(Wall(500)), ..query("q") };
        assert_eq!(ids(&history.list(&between).unwrap()), ["b", "aa"], "from, but not to");
        assert_eq!(
            ids(&history.list(&Query { since: Some(Wall(600)), until: Some(Wall(5)), ..query("q") }).unwrap()),
            [""; 0]
        );
        assert_eq!(history.covered(), 51);
    }
}

#[test]
fn pages_follow_each_other_and_rows_that_come_meanwhile_disturb_nobody() {
    for (mut history, _dir) in both(KEEP) {
        let rows: Vec<Row> = (1..=25).map(|n| finished("q", &format!("p{n:02}"), n * 10)).collect();
        history.write(&rows, 250).unwrap();
        let (mut found, mut after, mut pages) = (Vec::new(), None, 0);
        loop {
            let page = history.list(&Query { page_size: 10, after, ..query("q") }).unwrap();
            found.extend(page.entries.iter().map(|(finished, _)| finished.id.clone()));
            pages += 1;
            history.write(&[finished("q", &format!("late{pages}"), 1_000 + pages)], 1_000 + pages).unwrap();
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        let expected: Vec<String> = (1..=25).rev().map(|n| format!("p{n:02}")).collect();
        assert_eq!((found, pages), (expected, 3));
    }
}

#[test]
fn a_page_is_bounded_by_bytes() {
    let mut history = History::in_memory(KEEP);
    let large = |n: u64| match finished("q", &format!("p{n}"), n * 10) {
        Row::Finished(row) => Row::Finished(Box::new(Finished { result: vec![7; 1 << 20], ..*row })),
        other => other,
    };
    history.write(&(1..=20).map(large).collect::<Vec<_>>(), 200).unwrap();
    let page = history.list(&query("q")).unwrap();
    let least = limits::HISTORY_PAGE_BYTES / (2 << 20);
    let most = limits::HISTORY_PAGE_BYTES / (1 << 20) + 1;
    assert!((least..=most).contains(&page.entries.len()) && page.next.is_some(), "{} entries", page.entries.len());
}

#[test]
fn writing_again_changes_nothing() {
    for (mut history, _dir) in both(KEEP) {
        let rows = [finished("q", "a", 10), attempt("q", "a", 9), finished("q", "b", 20)];
        history.write(&rows, 20).unwrap();
        let (sums, page) = (history.sums(), history.list(&query("q")).unwrap());
        assert_eq!(sums.rows, 2);
        history.write(&rows, 15).unwrap();
        history.write(&[rows.as_slice(), rows.as_slice()].concat(), 20).unwrap();
        assert_eq!((history.sums(), history.list(&query("q")).unwrap()), (sums, page));
    }
}

#[test]
fn what_is_old_or_too_much_goes_oldest_first_and_the_count_comes_out_even() {
    for bound in ["age", "bytes"] {
        let keep = Keep { age_ms: 5_000, bytes: if bound == "age" { u64::MAX } else { 10_000 } };
        for (mut history, _dir) in both(keep) {
            let rows: Vec<Row> = (1..=1_500)
                .flat_map(|n| [attempt("q", &format!("p{n}"), n * 10 - 1), finished("q", &format!("p{n}"), n * 10)])
                .collect();
            history.write(&rows, 15_000).unwrap();
            // The first five hundred are older than five seconds in the one case.
            let now = Wall(if bound == "age" { 55_000 } else { 0 });
            let mut steps = 0;
            while history.trim(now).unwrap() {
                steps += 1;
            }
            assert!(steps <= 2, "bounded steps, and few");
            let found = history.list(&query("q")).unwrap();
            assert_eq!(found.entries[0].0.id, "p1500");
            assert!(found.entries.iter().all(|(_, attempts)| attempts.len() == 1));
            if bound == "age" {
                assert_eq!(history.sums().rows, 1_000, "those that finished within the last five seconds");
            } else {
                assert!((10..100).contains(&found.entries.len()) && history.sums().bytes <= 10_000);
            }
            let before = history.sums().rows;
            let more = history.trim(Wall(u64::MAX)).unwrap();
            assert_eq!(history.sums().rows, before.saturating_sub(limits::HISTORY_TRIM_ROWS as u64), "one step");
            assert_eq!(more, before >= limits::HISTORY_TRIM_ROWS as u64);
            while history.sums().bytes > 0 {
                history.trim(Wall(u64::MAX)).unwrap();
            }
            assert_eq!(history.sums(), Sums::default());
            assert_eq!(history.covered(), 15_000, "how far it came is not forgotten");
        }
    }
}

#[test]
fn attempts_of_packages_that_never_finished_go_by_age() {
    for (mut history, _dir) in both(Keep { age_ms: 100, bytes: u64::MAX }) {
        let rows: Vec<Row> = (1..=2_500).map(|n| attempt("q", &format!("p{n}"), n)).collect();
        history.write(&rows, 2_500).unwrap();
        let before = history.sums().bytes;
        for _ in 0..4 {
            history.trim(Wall(12_000)).unwrap();
        }
        assert!(history.sums().bytes < before * 6 / 10 && history.sums().bytes > before / 3, "half of them");
        for _ in 0..4 {
            history.trim(Wall(100_000)).unwrap();
        }
        assert_eq!(history.sums().bytes, 0);
    }
}

#[test]
fn gaps_are_told_and_what_is_on_disk_is_there_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("history");
    let gap = Gap { from: 11, to: 19, time_ms: 5 };
    let before = {
        let mut history = History::open(&path, KEEP).unwrap();
        history.write(&[finished("q", "a", 10)], 10).unwrap();
        history.write_gap(gap).unwrap();
        history.flush().unwrap();
        history.list(&query("q")).unwrap()
    };
    let history = reopened(&path);
    assert_eq!(history.list(&query("q")).unwrap(), before);
    assert_eq!((before.gaps, before.covered, history.sums().rows), (vec![gap], 19, 1));
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn the_latest_attempts_and_gaps_are_told_and_one_package_s_ends_are_bounded() {
    let mut history = History::in_memory(KEEP);
    let most = limits::HISTORY_ATTEMPTS as u64;
    let rows: Vec<Row> = (1..=most + 5).map(|fence| attempt("q", "a", fence)).collect();
    history.write(&rows, 1).unwrap();
    history.write(&[finished("q", "a", most + 6)], 1).unwrap();
    for at in 0..limits::HISTORY_GAPS as u64 + 5 {
        history.write_gap(Gap { from: at * 10, to: at * 10 + 5, time_ms: 1 }).unwrap();
    }
    let page = history.list(&query("q")).unwrap();
    let fences: Vec<_> = page.entries[0].1.iter().map(|attempt| attempt.fence).collect();
    assert_eq!(fences, (6..=most + 5).collect::<Vec<_>>());
    assert_eq!((page.gaps.len(), page.gaps[0].from), (limits::HISTORY_GAPS, 50));
    let ends: Vec<Row> = (1_000..1_000 + limits::HISTORY_PAGE as u64 + 5).map(|at| finished("q", "b", at)).collect();
    history.write(&ends, 1).unwrap();
    let one = Query { id: "b".into(), page_size: usize::MAX, ..query("q") };
    assert!(history.list(&one).unwrap().entries.len() <= limits::HISTORY_PAGE);
}

/// Stored once, readable for ever.
#[test]
fn stored_rows_read_back() {
    let row = include_str!("../../../tests/fixtures/history/finished.json");
    let finished = Finished::from_bytes(row.as_bytes()).unwrap();
    assert_eq!((&*finished.id, finished.state, finished.result.len(), finished.labels.len()), ("a", 5, 2, 1));
    assert_eq!(serde_json::to_string(&finished).unwrap(), row.trim());
    let row = include_str!("../../../tests/fixtures/history/attempt.json");
    let attempt = Attempt::from_bytes(row.as_bytes()).unwrap();
    assert_eq!((attempt.fence, attempt.begin_ms, attempt.charged), (7, Some(1_000), true));
    assert_eq!(serde_json::to_string(&attempt).unwrap(), row.trim());
    // What an older version did not write is not there.
    assert_eq!(Attempt::from_bytes(b"{\"fence\":7,\"of a later version\":1}").unwrap().fence, 7);
    assert!(matches!(Finished::from_bytes(b"\xff"), Err(Error::Damaged(_))));
}

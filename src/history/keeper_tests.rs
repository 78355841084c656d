//! Whatever the store does, the keeper goes on.

use super::*;
use crate::storage::history::Finished;

const KEEP: Keep = Keep { age_ms: u64::MAX / 2, bytes: u64::MAX };

struct Scene {
    dir: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn home(&self) -> PathBuf {
        self.dir.path().join("history")
    }

    fn keeper(&self) -> Keeper {
        let mut keeper = Keeper::new(Home::Disk(self.home()), KEEP, Env::real(), Arc::default());
        let until = Instant::now() + Duration::from_secs(20);
        keeper.open();
        // sled's own threads let go of what was closed just now a moment later.
        while keeper.history.is_none() && Instant::now() < until {
            std::thread::yield_now();
            keeper.retry_at = Instant::now();
            keeper.open();
        }
        assert!(keeper.history.is_some());
        keeper
    }

    fn aside(&self) -> Vec<String> {
        let names = fs::read_dir(self.dir.path()).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
        names.filter(|name| name.starts_with("history.damaged-")).collect()
    }
}

fn row(revision: u64) -> Row {
    let id = format!("p{revision}");
    Row::Finished(Box::new(Finished { queue: "q".into(), id, state: 4, revision, ..Finished::default() }))
}

fn page(keeper: &mut Keeper) -> Page {
    let query = Query { queue: "q".into(), page_size: 100, ..Query::default() };
    keeper.open();
    keeper.guarded("read", |history| history.list(&query)).expect("it can be read")
}

fn begin(keeper: &mut Keeper) -> u64 {
    let (answer, mut begin) = oneshot::channel();
    keeper.work(Job::Begin { answer });
    begin.try_recv().expect("an answer")
}

#[test]
fn a_panic_of_the_store_is_caught_and_what_is_gone_is_told() {
    let scene = Scene::new();
    let mut keeper = scene.keeper();
    keeper.work(Job::Write { rows: vec![row(5)], covered: 10 });
    let done: Option<()> = keeper.guarded("read", |_| panic!("as sled does"));
    assert!(done.is_none() && keeper.history.is_none());
    keeper.work(Job::Write { rows: vec![row(15)], covered: 20 });
    let page = page(&mut keeper);
    assert_eq!(page.entries.len(), 1, "the new one goes on");
    assert_eq!(page.gaps.iter().map(|gap| (gap.from, gap.to)).collect::<Vec<_>>(), [(1, 10)]);
    assert_eq!((page.covered, scene.aside().len()), (20, 1));
    assert_eq!(keeper.stats.set_aside.load(Ordering::Relaxed), 1);
    assert_eq!(keeper.stats.dropped.load(Ordering::Relaxed), 10);
}

#[test]
fn an_error_of_the_disk_damages_nothing_and_is_tried_again_later() {
    let scene = Scene::new();
    let mut keeper = scene.keeper();
    keeper.work(Job::Write { rows: vec![row(5)], covered: 10 });
    let failed: Option<()> = keeper.guarded("write", |_| Err(io::Error::other("no space").into()));
    assert!(failed.is_none());
    keeper.work(Job::Write { rows: vec![row(15)], covered: 20 });
    assert!(keeper.history.is_none(), "not at once");
    keeper.retry_at = Instant::now();
    keeper.work(Job::Write { rows: vec![row(25)], covered: 30 });
    let page = page(&mut keeper);
    let ids: Vec<_> = page.entries.iter().map(|(finished, _)| &*finished.id).collect();
    assert_eq!(ids, ["p25", "p5"], "what was there is there");
    assert_eq!(page.gaps.iter().map(|gap| (gap.from, gap.to)).collect::<Vec<_>>(), [(11, 20)]);
    assert!(scene.aside().is_empty());
}

#[test]
fn it_goes_on_where_it_stopped() {
    let scene = Scene::new();
    let mut keeper = scene.keeper();
    assert_eq!(begin(&mut keeper), 1);
    keeper.work(Job::Write { rows: vec![row(5)], covered: 10 });
    keeper.work(Job::Gap { from: 11, to: 14 });
    keeper.work(Job::Flush { answer: None });
    assert_eq!(keeper.stats.rows.load(Ordering::Relaxed), 1);
    drop(keeper);
    let mut keeper = scene.keeper();
    assert_eq!((begin(&mut keeper), page(&mut keeper).entries.len()), (15, 1));
}

#[test]
fn a_directory_that_two_processes_did_not_survive_is_set_aside() {
    let scene = Scene::new();
    let mut keeper = scene.keeper();
    keeper.work(Job::Write { rows: vec![row(5)], covered: 10 });
    keeper.work(Job::Flush { answer: None });
    drop(keeper);
    // Once may be chance: the node was killed just then.
    let tries = Tries::of(&scene.home());
    tries.begin().unwrap();
    let mut keeper = scene.keeper();
    assert_eq!((page(&mut keeper).entries.len(), scene.aside().len(), tries.made()), (1, 0, 0));
    drop(keeper);
    (0..limits::HISTORY_OPEN_TRIES).for_each(|_| tries.begin().unwrap());
    let mut keeper = scene.keeper();
    assert_eq!((page(&mut keeper).entries.len(), scene.aside().len(), tries.made()), (0, 1, 0));
}

#[test]
fn of_damaged_histories_only_the_latest_stay() {
    let scene = Scene::new();
    let old = scene.dir.path().join("history.damaged-20200101T000000.000Z");
    fs::create_dir(&old).unwrap();
    for n in 0..4 {
        fs::create_dir_all(scene.home()).unwrap();
        fs::write(scene.home().join("conf"), "this is no database").unwrap();
        let mut keeper = scene.keeper();
        assert!(page(&mut keeper).entries.is_empty(), "{n}");
    }
    assert_eq!(scene.aside().len(), limits::HISTORY_DAMAGED_KEPT);
    assert!(!old.exists());
}

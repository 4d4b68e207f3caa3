-- Dead letters that can be worked with: found by environment, told again one or many at a time, discarded with a reason, and the same letter again
-- when telling it again fails.
--
--   waiting    for an operator
--   replaying  asked for; its consumer has it in hand (the ledger, which takes its own letters in again by itself)
--   replayed   told again, and nobody has refused it since
--   discarded  with a note that says why
--
-- Rejections by instances are grouped: one letter for each (version, reason), which counts its instances and names some. The ledger alone writes
-- those, under its leader's lock, so "look, then insert or update" is safe there.
set local role heliograph_owner;

alter table eventlog.dead_letter
  add column namespace    text,
  add column environment  text,
  add column number       bigint,                     -- of a rejected version
  add column version      text,
  add column logged_at_us bigint,                     -- when the record was committed to the log
  add column failed_at    timestamptz,                -- the latest failure; null: the first one, at created_at
  add column replays      int not null default 0,
  add column replay_trace text,                       -- of the latest replay; what it sends carries it, and so do the answers
  add column instances    bigint not null default 0,  -- how many refuse; 0 where that is not what the letter is about
  add column sample       text[] not null default '{}',
  add column first_reason text,                       -- what a group of rejections was first about; `reason` is the latest
  add column note         text;                       -- why it was discarded
alter table eventlog.dead_letter drop constraint dead_letter_state_check;
alter table eventlog.dead_letter add constraint dead_letter_state_check
  check (state in ('waiting', 'replaying', 'replayed', 'discarded'));

update eventlog.dead_letter set namespace = split_part(key, '/', 1), environment = split_part(key, '/', 2)
 where stream = 'versions' and key ~ '^[a-z0-9][a-z0-9._-]*/[a-z0-9][a-z0-9._-]*$';

create index dead_letter_waiting on eventlog.dead_letter (stream, created_at) where state = 'waiting';
create index dead_letter_replaying on eventlog.dead_letter (consumer, id) where state = 'replaying';
create index dead_letter_settled on eventlog.dead_letter (settled_at) where state in ('replayed', 'discarded');
create unique index dead_letter_of_rejection on eventlog.dead_letter (version, md5(first_reason)) where consumer = 'instances';

-- only settled letters are deleted, by the registry's upkeep
grant delete on eventlog.dead_letter to heliograph_registry;

create function ledger.refusing(p_version text, p_reasons text[], p_others boolean) returns text[]
language sql stable as $$
  -- ids of the instances whose answer to the version is still a rejection for one of these reasons (p_others: for any but these)
  select coalesce(array_agg(distinct r.instance), '{}') from ledger.receipt r
   where r.version = p_version and r.state = 'rejected' and (coalesce(r.reason, 'rejected without a reason') = any (p_reasons)) <> p_others
$$;

-- Groups a rejection into its letter. Which letter:
--   the one with this reason; else the one of this version that was told again and is now refused once more; else a new one;
--   beyond p_groups of a version, the one named `other reasons`.
-- Answers what that was: new, again (a replay that failed), known (or nothing to be said, when the instance has applied it since).
create function ledger.set_rejection_aside(
    p_namespace      text,
    p_environment    text,
    p_number         bigint,
    p_version        text,
    p_reason         text,
    p_received_at_us bigint,
    p_trace          text,
    p_body           bytea,
    p_groups         int,
    p_sample         int
) returns text language plpgsql as $$
declare
    v_letter eventlog.dead_letter;
    v_others text[];
    v_first  text := p_reason;
    v_who    text[];
    v_again  boolean;
begin
    select * into v_letter from eventlog.dead_letter d
     where d.consumer = 'instances' and d.version = p_version and p_reason in (d.first_reason, d.reason) order by d.id limit 1 for update;
    if not found then
        select * into v_letter from eventlog.dead_letter d
         where d.consumer = 'instances' and d.version = p_version and d.state = 'replayed'
           and (d.replay_trace = p_trace or d.settled_at < to_timestamp(p_received_at_us / 1e6))
         order by d.settled_at desc, d.id desc limit 1 for update;
    end if;
    if not found and (select count(*) from eventlog.dead_letter d where d.consumer = 'instances' and d.version = p_version) >= p_groups then
        v_first := 'other reasons';
        select * into v_letter from eventlog.dead_letter d
         where d.consumer = 'instances' and d.version = p_version and d.first_reason = v_first for update;
    end if;

    if coalesce(v_letter.first_reason, v_first) = 'other reasons' then
        select array_agg(each) into v_others from eventlog.dead_letter d, unnest(array[d.first_reason, d.reason]) each
         where d.consumer = 'instances' and d.version = p_version and d.first_reason <> 'other reasons';
        v_who := ledger.refusing(p_version, v_others, true);
    else
        v_who := ledger.refusing(p_version, array[v_letter.first_reason, v_letter.reason, p_reason], false);
    end if;
    if cardinality(v_who) = 0 then
        return 'known';
    end if;

    if v_letter.id is null then
        insert into eventlog.dead_letter (stream, consumer, key, body, reason, attempts, trace, namespace, environment, number, version,
                                          first_reason, instances, sample, logged_at_us)
        values ('deliveries', 'instances', p_namespace || '/' || p_environment, p_body, v_first, 1, p_trace, p_namespace, p_environment,
                p_number, p_version, v_first, cardinality(v_who), v_who[1:p_sample], p_received_at_us);
        return 'new';
    end if;
    -- by its trace, because clocks differ; by time for an instance that came later
    v_again := v_letter.state = 'replayed'
           and (coalesce(v_letter.replay_trace = p_trace, false) or v_letter.settled_at < to_timestamp(p_received_at_us / 1e6));
    update eventlog.dead_letter d
       set instances = cardinality(v_who), sample = v_who[1:p_sample], failed_at = now(),
           reason = case when d.first_reason = 'other reasons' then d.reason when v_again then p_reason else d.reason end,
           state = case when v_again then 'waiting' else d.state end,
           attempts = d.attempts + v_again::int,
           settled_at = case when v_again then null else d.settled_at end,
           settled_by = case when v_again then null else d.settled_by end
     where d.id = v_letter.id;
    return case when v_again then 'again' else 'known' end;
end $$;

revoke execute on function ledger.refusing(text, text[], boolean),
  ledger.set_rejection_aside(text, text, bigint, text, text, bigint, text, bytea, int, int) from public;
grant execute on function ledger.refusing(text, text[], boolean),
  ledger.set_rejection_aside(text, text, bigint, text, text, bigint, text, bytea, int, int) to heliograph_ledger;
reset role;

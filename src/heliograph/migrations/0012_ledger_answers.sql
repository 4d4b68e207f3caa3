-- Answers that come after their version was closed are kept beside those that were published; rejections are grouped a batch at a time.
set local role heliograph_owner;

-- What an instance said after the close, when it is better than what it had said by then: it may have applied since what it had refused. In a
-- table of its own, because the published receipts must stay as they are, and because the key of ledger.receipt is what the previous release
-- upserts by. Late answers from then stand in ledger.receipt, where nothing had been said before.
create table ledger.late_receipt (
    version        text not null,
    instance       text not null,
    subscription   bigint not null,
    day            date not null,
    state          ledger.state not null,
    reason         text,
    applied_at_us  bigint not null,
    received_at_us bigint not null,
    connection     text not null,
    node           text not null,
    trace          text,
    primary key (version, instance, subscription)
);
create index late_receipt_age on ledger.late_receipt (day);
grant select, insert, update on ledger.late_receipt to heliograph_ledger;

-- Every answer that is kept; of one subscription there may be several.
create view ledger.told as
    select version, instance, subscription, state, reason, applied_at_us, received_at_us, connection, node, late from ledger.receipt
    union all
    select version, instance, subscription, state, reason, applied_at_us, received_at_us, connection, node, true from ledger.late_receipt;
grant select on ledger.told to heliograph_ledger;

-- As in 0005, and late answers by their age, too.
create or replace function ledger.retain(p_receipts_before date, p_versions_before_us bigint, p_subscriptions_before_us bigint) returns int
language plpgsql security definer set search_path = ledger, pg_temp set timezone = 'UTC' as $$
declare
    v_table text;
    v_dropped int := 0;
begin
    for v_table in
        select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid
        where i.inhparent = 'ledger.receipt'::regclass and c.relname ~ '^receipt_[0-9]{8}$'
          and to_date(right(c.relname, 8), 'YYYYMMDD') < p_receipts_before
    loop
        execute format('drop table ledger.%I', v_table);
        v_dropped := v_dropped + 1;
    end loop;
    delete from ledger.receipt_default where day < p_receipts_before;
    delete from ledger.late_receipt where day < p_receipts_before;
    delete from ledger.fan_out where done_at_us < p_versions_before_us;
    delete from ledger.version
     where committed_at_us < p_versions_before_us and closed_at_us is not null and audit is distinct from 'pending';
    delete from ledger.subscription where until_us < p_subscriptions_before_us;
    delete from ledger.node where lost and alive_at_us < p_subscriptions_before_us;
    return v_dropped;
end $$;

create function ledger.refusals(p_version text) returns table (instance text, reason text) language sql stable as $$
  -- who refuses the version, with each reason it gave: subscriptions that have not answered anything better, on whatever day
  select distinct r.instance, coalesce(r.reason, 'rejected without a reason')
    from (select a.instance, a.reason, max(a.state) over (partition by a.instance, a.subscription) as best
            from ledger.told a where a.version = p_version) r
   where r.best = 'rejected'
$$;

-- What it costs grows with the answers of a version, not with how many reasons they give.
--
-- Groups what a batch of answers refuses of one version into letters; p_reasons: each once. Which letter a reason goes to:
--   the one with this reason; else the one of this version that was told again and is now refused once more; else a new one;
--   beyond p_groups of a version, the one named `other reasons`.
-- Answers, for each letter that is new or is a replay that failed: new, again. The previous release calls set_rejection_aside.
create function ledger.set_rejections_aside(
    p_namespace      text,
    p_environment    text,
    p_number         bigint,
    p_version        text,
    p_reasons        text[],
    p_received_at_us bigint[],
    p_traces         text[],
    p_bodies         bytea[],
    p_groups         int,
    p_sample         int
) returns text[] language plpgsql as $$
declare
    v_refused text[];                   -- reasons that somebody still refuses it for
    v_named   text[];                   -- reasons that have a letter of their own
    v_count   int;
    v_full    boolean := false;         -- every reason without a letter goes to `other reasons`, which has been touched
    v_said    record;
    v_letter  eventlog.dead_letter;
    v_again   boolean;
    v_touched bigint[] := '{}';
    v_done    text[] := '{}';
begin
    select coalesce(array_agg(distinct r.reason), '{}') into v_refused from ledger.refusals(p_version) r;
    perform from eventlog.dead_letter d where d.consumer = 'instances' and d.version = p_version order by d.id for update;
    select count(distinct d.id), coalesce(array_agg(each) filter (where d.first_reason <> 'other reasons'), '{}') into v_count, v_named
      from eventlog.dead_letter d, unnest(array[d.first_reason, d.reason]) each
     where d.consumer = 'instances' and d.version = p_version;

    for v_said in
        select n.*, kept.reason is not null as kept
          from unnest(p_reasons, p_received_at_us, p_traces, p_bodies) with ordinality as n(reason, received_at_us, trace, body, place)
          left join unnest(v_refused) as kept(reason) using (reason)
         order by n.place
    loop
        continue when v_full and not v_said.reason = any (v_named);
        select * into v_letter from eventlog.dead_letter d
         where d.consumer = 'instances' and d.version = p_version and v_said.reason in (d.first_reason, d.reason) order by d.id limit 1;
        if not found then
            select * into v_letter from eventlog.dead_letter d
             where d.consumer = 'instances' and d.version = p_version and d.state = 'replayed'
               and (d.replay_trace = v_said.trace or d.settled_at < to_timestamp(v_said.received_at_us / 1e6))
             order by d.settled_at desc, d.id desc limit 1;
        end if;
        continue when not found and not v_said.kept;
        if not found and v_count >= p_groups then
            select * into v_letter from eventlog.dead_letter d
             where d.consumer = 'instances' and d.version = p_version and d.first_reason = 'other reasons';
            v_full := not exists (select from eventlog.dead_letter d
                                   where d.consumer = 'instances' and d.version = p_version and d.state = 'replayed');
        end if;

        if v_letter.id is null then
            insert into eventlog.dead_letter as d (stream, consumer, key, body, reason, attempts, trace, namespace, environment, number, version,
                                                   first_reason, logged_at_us)
            select 'deliveries', 'instances', p_namespace || '/' || p_environment, v_said.body, named, 1, v_said.trace, p_namespace,
                   p_environment, p_number, p_version, named, v_said.received_at_us
              from (select case when v_count >= p_groups then 'other reasons' else v_said.reason end) as n(named)
            returning * into v_letter;
            v_count := v_count + 1;
            v_done := v_done || 'new'::text;
        else
            continue when not case when v_letter.first_reason = 'other reasons'
                                   then exists (select from unnest(v_refused) each where not each = any (v_named))
                                   else v_refused && array[v_letter.first_reason, v_letter.reason, v_said.reason] end;
            -- by its trace, because clocks differ; by time for an instance that came later
            v_again := v_letter.state = 'replayed'
                   and (coalesce(v_letter.replay_trace = v_said.trace, false)
                        or v_letter.settled_at < to_timestamp(v_said.received_at_us / 1e6));
            update eventlog.dead_letter d
               set failed_at = now(),
                   reason = case when d.first_reason = 'other reasons' then d.reason when v_again then v_said.reason else d.reason end,
                   state = case when v_again then 'waiting' else d.state end,
                   attempts = d.attempts + v_again::int,
                   settled_at = case when v_again then null else d.settled_at end,
                   settled_by = case when v_again then null else d.settled_by end
             where d.id = v_letter.id returning * into v_letter;
            v_done := v_done || case when v_again then array['again'] else '{}' end;
        end if;
        v_touched := v_touched || v_letter.id;
        if v_letter.first_reason <> 'other reasons' then
            v_named := v_named || v_letter.reason;
        end if;
    end loop;

    with who as materialized (select * from ledger.refusals(p_version)),
    named as (
        select d.id, each as reason from eventlog.dead_letter d, unnest(array[d.first_reason, d.reason]) each
         where d.consumer = 'instances' and d.version = p_version and d.first_reason <> 'other reasons'
    ), theirs as (
        select n.id, w.instance from named n join who w using (reason)
        union
        select d.id, w.instance from eventlog.dead_letter d, who w
         where d.consumer = 'instances' and d.version = p_version and d.first_reason = 'other reasons'
           and w.reason not in (select n.reason from named n)
    ), counted as (select t.id, array_agg(t.instance order by t.instance) as names from theirs t group by t.id)
    update eventlog.dead_letter d set instances = cardinality(c.names), sample = c.names[1:p_sample]
      from counted c where d.id = c.id and d.id = any (v_touched);
    return v_done;
end $$;

-- Those that a node may bring back when it speaks again.
create index subscription_of_forgotten_node on ledger.subscription (node) where ended = 'node lost';

-- A position alone names no record: another log begins at the first one again, and so may a higher timeline after a lost tail. '': not told, as
-- by sync nodes, which follow one log and read it from its beginning at each start, and by the previous release.
alter table eventlog.dead_letter add column log text not null default '';
alter table eventlog.dead_letter drop constraint dead_letter_stream_consumer_shard_position_key;
alter table eventlog.dead_letter add constraint dead_letter_of_record unique (stream, consumer, shard, position, log);

revoke execute on function ledger.refusals(text),
  ledger.set_rejections_aside(text, text, bigint, text, text[], bigint[], text[], bytea[], int, int) from public;
grant execute on function ledger.refusals(text),
  ledger.set_rejections_aside(text, text, bigint, text, text[], bigint[], text[], bytea[], int, int) to heliograph_ledger;
reset role;

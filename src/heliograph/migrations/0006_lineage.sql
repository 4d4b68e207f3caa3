-- Where the content of an environment came from: the edges that make common points of two environments.
--
-- Versions say by their signed source what they were branched, promoted or rolled back from; here it stands once more so that it can be found
-- without reading a history, with what a signed record does not say: which configs a promotion covered, and promotions that found nothing to
-- change. Rows are written once. Those of a version are written by its transaction; a promotion that found nothing to change waits for the
-- next version of its target, so everything that a version came from was committed before it.

set local role heliograph_owner;

create table registry.lineage (
    id                 bigint generated always as identity primary key,
    namespace          text not null,
    environment        text not null,
    number             bigint not null,           -- the version that has it, and every later one until a rollback
    kind               text not null check (kind in ('branch', 'promote', 'rollback')),
    source_environment text not null,
    source_number      bigint not null,           -- of a rollback: the last row of the version whose content came back, 0 for none
    source_at          timestamptz not null,      -- when the source was committed
    selectors          text[],                    -- configs, and folders with all below them, that were promoted; null: all
    at                 timestamptz not null default now()
);
create index lineage_of_version on registry.lineage (namespace, environment, number desc, id desc);
create index lineage_by_source on registry.lineage (namespace, environment, source_environment, source_number desc)
    where kind <> 'rollback';
create index lineage_rollbacks on registry.lineage (namespace, environment, number desc, id desc) where kind = 'rollback';

create trigger written_once before update or delete or truncate on registry.lineage
    for each statement execute function registry.refuse_change();

-- Whether anything of a namespace was ever purged decides how much a branch has to look at.
create index object_purged on registry.object (namespace) where purged;

create function registry.add_lineage(
    p_namespace text, p_environment text, p_number bigint, p_kind text, p_source_environment text, p_source_number bigint, p_selectors text[]
) returns void language sql as $$
    insert into registry.lineage (namespace, environment, number, kind, source_environment, source_number, source_at, selectors)
    values (p_namespace, p_environment, p_number, p_kind, p_source_environment,
            -- A rollback points past other rollbacks, so that whoever walks back takes few steps.
            case when p_kind <> 'rollback' then p_source_number else coalesce((
                select case when l.kind = 'rollback' then l.source_number else l.number end from registry.lineage l
                 where l.namespace = p_namespace and l.environment = p_environment and l.number <= p_source_number
                 order by l.number desc, l.id desc limit 1), 0) end,
            coalesce((select v.committed_at from registry.version v
                       where v.namespace = p_namespace and v.environment = p_source_environment and v.number = p_source_number), now()),
            p_selectors);
$$;

-- commit_version, and the lineage of the version when it was committed: in one transaction and one round trip.
create function registry.commit_with_lineage(
    p_namespace         text,
    p_environment       text,
    p_base              bytea,
    p_base_issued_at_us bigint,
    p_digests           bytea[],
    p_kinds             text[],
    p_bodies            bytea[],
    p_epoch             bigint,
    p_number            bigint,
    p_version           bytea,
    p_root              bytea,
    p_peaks             bytea,
    p_at_us             bigint,
    p_message           bytea,
    p_names             text[],
    p_configs           int,
    p_record            text,
    p_record_signatures text,
    p_safe              bigint,
    p_issued_at_us      bigint,
    p_expires_at_us     bigint,
    p_head              text,
    p_head_signatures   text,
    p_received_at_us    bigint,
    p_trace             text,
    p_shard             int,
    p_event             bytea,
    p_actor             text,
    p_action            text,
    p_detail            text,
    p_principal         text,
    p_key               text,
    p_request           bytea,
    p_status            int,
    p_answer            bytea,
    p_kind              text,
    p_source_environment text,
    p_source_number     bigint,
    p_selectors         text[]
) returns table (outcome text, status int, answer bytea) language plpgsql as $$
#variable_conflict use_column
declare
    v_done record;
begin
    select * into v_done from registry.commit_version(
        p_namespace, p_environment, p_base, p_base_issued_at_us, p_digests, p_kinds, p_bodies, p_epoch, p_number,
        p_version, p_root, p_peaks, p_at_us, p_message, p_names, p_configs, p_record, p_record_signatures, p_safe,
        p_issued_at_us, p_expires_at_us, p_head, p_head_signatures, p_received_at_us, p_trace, p_shard, p_event,
        p_actor, p_action, p_detail, p_principal, p_key, p_request, p_status, p_answer);
    if v_done.outcome = 'committed' then
        perform registry.add_lineage(p_namespace, p_environment, p_number, p_kind, p_source_environment, p_source_number, p_selectors);
    end if;
    return query select v_done.outcome, v_done.status, v_done.answer;
end $$;

-- A promotion that found nothing to change at p_number is a common point all the same, for what follows it. False: that was known.
create function registry.note_lineage(
    p_namespace text, p_environment text, p_number bigint, p_source_environment text, p_source_number bigint, p_selectors text[],
    p_actor text, p_action text, p_detail text
) returns boolean language plpgsql as $$
begin
    if exists (select from registry.lineage l
                where l.namespace = p_namespace and l.environment = p_environment and l.number = p_number + 1 and l.kind <> 'rollback'
                  and l.source_environment = p_source_environment and l.source_number >= p_source_number
                  and (l.selectors is null or l.selectors = p_selectors)) then
        return false;
    end if;
    perform registry.add_lineage(p_namespace, p_environment, p_number + 1, 'promote', p_source_environment, p_source_number, p_selectors);
    insert into registry.audit (namespace, environment, actor, action, detail)
        values (p_namespace, p_environment, p_actor, p_action, p_detail::jsonb);
    return true;
end $$;

-- What has flowed into a version directly from other environments, as far as it can matter: of each source the newest promotion of everything
-- (or the branch), and the newer ones of some configs. A rollback takes a version back to what was known where its content came from.
-- Bounded: 64 rollbacks back, 500 promotions of some configs of each source.
create function registry.sources_of(p_namespace text, p_environment text, p_number bigint)
returns table (source_environment text, source_number bigint, source_at timestamptz, selectors text[]) language plpgsql stable as $$
#variable_conflict use_column
declare
    v_to       bigint := p_number;
    v_rollback registry.lineage;
begin
    for v_step in 1 .. 64 loop
        select * into v_rollback from registry.lineage l
         where l.namespace = p_namespace and l.environment = p_environment and l.kind = 'rollback' and l.number <= v_to
         order by l.number desc, l.id desc limit 1;
        return query
            with recursive source (name) as (
                select min(l.source_environment) from registry.lineage l
                 where l.namespace = p_namespace and l.environment = p_environment and l.kind <> 'rollback'
                union all
                select (select min(l.source_environment) from registry.lineage l
                         where l.namespace = p_namespace and l.environment = p_environment and l.kind <> 'rollback'
                           and l.source_environment > s.name)
                  from source s where s.name is not null
            )
            select found.source_environment, found.source_number, found.source_at, found.selectors
              from source s
              cross join lateral (
                select coalesce(max(l.source_number), 0) as number from registry.lineage l
                 where l.namespace = p_namespace and l.environment = p_environment and l.kind <> 'rollback'
                   and l.source_environment = s.name and l.selectors is null and l.number <= v_to
                   and (v_rollback.id is null or (l.number, l.id) > (v_rollback.number, v_rollback.id))
              ) whole
              cross join lateral (
                select l.* from registry.lineage l
                 where l.namespace = p_namespace and l.environment = p_environment and l.kind <> 'rollback'
                   and l.source_environment = s.name and l.number <= v_to
                   and (v_rollback.id is null or (l.number, l.id) > (v_rollback.number, v_rollback.id))
                   and (l.source_number > whole.number or (l.source_number = whole.number and l.selectors is null))
                 order by l.source_number desc limit 500
              ) found
             where s.name is not null;
        exit when v_rollback.id is null or v_rollback.source_number = 0;
        v_to := v_rollback.source_number;
    end loop;
end $$;

grant select, insert on registry.lineage to heliograph_registry;
reset role;
